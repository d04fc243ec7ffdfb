"""Prepare small corpora for the tests of this package."""

import json

import pytest

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import corpus
from distvae.system.errors import UserError


def prepare(tmp_path, **settings):
    if settings.get("path", CAPTIONS) != CAPTIONS:
        settings = {"min_count": 1} | settings
    data = DataConfig(cache=str(tmp_path / "cache"), workers=1, **settings)
    return corpus.load(corpus.prepare(data, progress=False))


def sentences(prepared, split):
    rows = getattr(prepared, split)
    return [" ".join(prepared.vocabulary.decode(rows[i])) for i in range(len(rows))]


def write_folder(folder, suffix=".txt", **splits):
    folder.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (folder / f"{split}{suffix}").write_text(splits.get(split, "a dog\na cat\n"), encoding="utf-8")
    return str(folder)


def snli_lines(pairs):
    label = {"gold_label": "-", "annotator_labels": ["neutral", "entailment"]}
    return "".join(json.dumps({**label, "sentence1": p, "sentence2": h}) + "\n" for p, h in pairs)


def error_of(tmp_path, **settings):
    """The message of the UserError, once it is known that it is one line and that nothing stays behind."""
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, **settings)
    cache = tmp_path / "cache"
    assert not cache.exists() or not list(cache.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)
