"""``distvae probe``, as a user runs it."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from distvae.cli import main
from distvae.data import captions
from distvae.evaluation.probes import bag_of_words
from distvae.model.posterior import Posterior
from distvae.runs.probing import Encoded, probe
from distvae.system.errors import UserError
from distvae.system.files import sha256
from tests.conftest import fork


def numbers(content):
    """Yield all numbers of JSON."""
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from numbers(value)
    elif isinstance(content, int | float):
        yield content


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A copy of ``finished``, which gets a probes.json."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "mine", symlinks=True)


@pytest.fixture(scope="module")
def found(run):
    assert main(["probe", str(run), "--beside", str(run / "best"), "--labels", "10,all"]) == 0
    return json.loads((run / "probes.json").read_text())


def test_the_captions_are_probed_for_their_factors(run, found):
    assert found["data"] == json.loads((run / "results.json").read_text())["data"]
    assert list(found["columns"]) == list(captions.Factors._fields)
    assert (found["format"], found["split"], found["seed"], found["notes"]) == (1, "test", 0, [])
    assert found["models"] == {
        name: sha256(run / "best" / "model.safetensors") for name in (str(run), str(run / "best"))
    }
    for name, column in found["columns"].items():
        assert (column["train"], column["test"]) == (81, 20)
        assert 2 <= column["classes"] <= 81
        kinds = [(each["model"], each["kind"]) for each in column["probes"]]
        assert kinds == [(str(run), "z"), (str(run), "mean"), (str(run / "best"), "z"), (str(run / "best"), "mean"),
                         (None, "words")], name  # fmt: skip
        for each in column["probes"]:
            assert list(each["accuracy"]) == ["10", "81"]
            assert 0 <= each["clusters"]["nmi"] <= 1
    assert all(map(math.isfinite, numbers(found)))


def test_the_same_model_reads_the_same(found):
    for column in found["columns"].values():
        one, other = ([{**each, "model": ""} for each in column["probes"][i : i + 2]] for i in (0, 2))
        assert one == other


def test_json_is_what_is_in_the_file(run, found, tmp_path, capsys):
    out = tmp_path / "folder" / "p.json"
    capsys.readouterr()
    assert main(["probe", str(run), "--quick", "--labels", "10,all", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    for name, column in printed["columns"].items():
        one, other = column["probes"][0], found["columns"][name]["probes"][0]
        assert one["accuracy"] == other["accuracy"]


def test_quick_is_z_alone(run, tmp_path, capsys):
    out = tmp_path / "p.json"
    assert main(["probe", str(run), "--quick", "--labels", "all", "--split", "valid", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "accuracy on valid of linear probes that learn from z of 81 labelled sentences" in shown
    assert "posterior means" not in shown
    column = json.loads(out.read_text())["columns"]["number"]
    assert [(each["kind"], each["clusters"]) for each in column["probes"]] == [("z", None), ("words", None)]


def test_two_processes_read_what_one_reads(run, found, tmp_path):
    out = tmp_path / "two.json"
    words = ["probe", str(run), "--labels", "10,all", "--quick", "--out", str(out)]
    codes, said = fork(tmp_path, [{"processes": 2, "program": "distvae.cli", "runs": [words]}])
    assert codes == [[0, 0]], said
    two = json.loads(out.read_text())["columns"]
    assert list(two) == list(found["columns"])
    for name, column in found["columns"].items():
        for one, other in zip([column["probes"][0], column["probes"][-1]], two[name]["probes"], strict=True):
            assert other["kind"] == one["kind"]
            assert list(numbers(other["accuracy"])) == pytest.approx(list(numbers(one["accuracy"])), abs=1e-6)


def test_new_text_with_labels(run, tmp_path, capsys):
    drawn = captions.draw(90, 5)
    for split, rows in (("train", drawn[:60]), ("valid", drawn[:1]), ("test", drawn[60:])):
        lines = [json.dumps({"text": " ".join(tokens), "n": found.number, "same": "x"}) for tokens, found in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    words = ["probe", str(run), str(tmp_path), "data.label=[n,same]", "--labels", "all", "--json", "--quick"]
    assert main([*words, "--out", str(tmp_path / "p.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == ["same: left out, because train has 1 of its classes"]
    assert (found["columns"]["n"]["train"], found["columns"]["n"]["test"]) == (60, 30)
    assert main([*words[:2], str(tmp_path), "data.label=same"]) == 2
    assert "there is nothing to probe for: same: left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--labels", "0"], "'0': should be whole numbers from 1 or all, as in 10,100,all"),
        (["{run}", "--labels", "10,,all"], "should be whole numbers from 1 or all"),
        (["{run}", "--split", "dev"], "a probe learns from train and is tested on dev, and the sentences have no dev"),
        (["{lm}"], "is a language model; it has no latent variable"),
        (["{run}", "{text}"], "a probe learns from train and is tested on test, and the sentences have no splits"),
        (["{run}", "{text}", "--out", "{text}"], "text.txt: is a file that is read; name another one to write"),
        (["{run}", "--out", "/proc/p.json", "--quick", "--labels", "10"], "/proc/p.json: cannot be written"),
    ],
)
def test_bad_input_is_one_line(run, language_model, tmp_path, said, words, message):
    text = tmp_path / "text.txt"
    text.write_text("A man is building a tower.\n")
    places = {"run": run, "lm": language_model, "text": text}
    error = said("probe", *(word.format(**places) for word in words), code=2)
    assert message in error
    assert error.count("\n") == 1


def test_text_without_labels_is_one_line(run, tmp_path, capsys):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("A man is building a tower.\n")
    assert main(["probe", str(run), str(tmp_path)]) == 2
    assert "the sentences have no labels to probe for; name a column by data.label=COLUMN" in capsys.readouterr().err


def encoded(name, labels, scale=1.0):
    rows = {"train": 40, "test": 30}
    mean = {split: torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for split, n in rows.items()}
    ids = {split: [np.array([0, 5, 1])] * n for split, n in rows.items()}
    parts = (Posterior(scale * mean[split], torch.zeros(n, 2)) for split, n in rows.items())
    return Encoded(name, "", "", *parts, labels, bag_of_words(ids["train"], ids["test"], 6))


def test_models_of_other_sentences_are_refused():
    one = {"kind": (["a", "b"] * 20, ["a", "b"] * 15)}
    other = {"kind": (["a", "b"] * 20, ["b", "a"] * 15)}
    with pytest.raises(UserError, match="other: has read other sentences than one"):
        probe([encoded("one", one), encoded("other", other)], "test", [None], True, 0, False)


def test_columns_without_labels_in_the_split_are_left_out():
    labels = {"kind": (["a", "b"] * 20, ["a", "b"] * 15), "blank": (["a", "b"] * 20, [None] * 30)}
    found = probe([encoded("one", labels)], "test", [None, 10, 10_000], True, 0, False)
    assert list(found.columns) == ["kind"]
    assert found.notes == ("blank: left out, because test has no label of it",)
    assert list(found.columns["kind"].probes[0].accuracy) == [10, 40]
