"""Scoring an export again; ``tests/fixtures/format1/run`` is a finished run."""

from dataclasses import replace
from pathlib import Path

import pytest

from distvae.config.schema import OptimizerConfig
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.runtime import Runtime
from distvae.runs.checkpoints import load_export
from distvae.runs.rescoring import rescore
from distvae.runs.results import load_results
from distvae.system.errors import UserError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format1" / "run"


def score(found, cache, split="test"):
    data = replace(found.config.data, cache=str(cache))
    return rescore("run", found, split, data, found.config.evaluation, Runtime(OptimizerConfig(mixed_precision="no")))


def test_the_scores_are_those_of_the_run(cache):
    found, run = score(load_export(FIXTURE), cache), load_results(FIXTURE)
    assert found.scores.nll.mean == pytest.approx(run.scores.nll.mean, abs=1e-4)
    assert found.scores.active_units == run.scores.active_units
    assert (found.floor, found.data, found.vocabulary) == (run.floor, run.data, run.vocabulary)
    assert (found.start, found.stages) == (None, ())


def test_another_split_has_other_scores(cache):
    found = score(load_export(FIXTURE), cache, "valid")
    assert found.split == "valid"
    assert found.scores.nll.mean != load_results(FIXTURE).scores.nll.mean


def test_sentences_of_another_vocabulary_are_refused(cache):
    export = replace(load_export(FIXTURE), vocabulary=Vocabulary.closed(["a", "b"]))
    with pytest.raises(UserError, match="it was trained on other sentences"):
        score(export, cache)
