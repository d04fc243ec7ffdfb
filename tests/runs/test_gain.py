"""``distvae gain``, as a user runs it."""

import functools
import json
import math
import shutil

import pytest

from distvae.config.schema import DataConfig
from distvae.data import captions, corpus
from distvae.system.files import sha256
from distvae.train import main as train
from tests.conftest import fork
from tests.data.corpora import write_folder
from tests.runs.test_probing import numbers


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A copy of ``finished``, which gets a gain.json."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "mine", symlinks=True)


def gain_of(run):
    return json.loads((run / "gain.json").read_text())


def test_the_figures_agree_with_those_of_evaluate(run, language_model, said):
    shown = said("gain", run, language_model, "--importance-samples", "2000")
    assert "test sentences, NLL in nats" in shown
    assert "K = 2,000 draws of z between prior and posterior" in shown
    found = gain_of(run)
    assert (found["format"], found["split"], found["samples"]) == (1, "test", 2000)
    assert found["models"] == [sha256(each / "best" / "model.safetensors") for each in (run, language_model)]
    assert found["names"] == ["mine", "language_model"]
    all_of_them = found["gain"]["sentences"]
    exact = json.loads((language_model / "results.json").read_text())["scores"]
    assert all_of_them["baseline"] == pytest.approx(exact["nll"], abs=1e-5)
    sampled = json.loads(said("evaluate", run, "--importance-samples", "2000", "--json"))["scores"]["nll"]
    assert all_of_them["nll"] == pytest.approx(sampled, abs=0.02)
    assert sum(each["count"] for each in found["gain"]["positions"]) == exact["tokens"]
    assert sum(each["count"] for each in found["gain"]["lengths"]) == all_of_them["count"] == 20
    model, baseline = found["gain"]["effective"]
    assert len(model) == len(found["gain"]["positions"])
    assert all(1 <= each <= 2000 for each in model)
    assert baseline is None
    assert all(map(math.isfinite, numbers(found)))


def test_the_table_and_json_are_what_is_in_the_file(run, language_model, said, tmp_path):
    out = tmp_path / "folder" / "gain.json"
    shown = said("gain", run, language_model, "--out", out, "--json", "--split", "valid", "--seed", "3")
    assert json.loads(shown) == json.loads(out.read_text())
    assert (json.loads(shown)["split"], json.loads(shown)["seed"]) == ("valid", 3)


def test_a_vae_can_be_the_baseline_and_a_model_gains_nothing_over_itself(run, said):
    shown = said("gain", run, run / "best")
    assert f"effective, {run / 'best'}" in shown.replace("\n", "")
    found = gain_of(run)
    assert found["names"] == [str(run), str(run / "best")]
    assert {each["gain"]["mean"] for each in found["gain"]["positions"]} == {0.0}


def test_two_processes_find_what_one_finds(run, language_model, said, tmp_path):
    said("gain", run, language_model)
    one, out = gain_of(run), tmp_path / "two.json"
    words = ["gain", str(run), str(language_model), "--out", str(out)]
    codes, told = fork(tmp_path, [{"processes": 2, "program": "distvae.cli", "runs": [words]}])
    assert codes == [[0, 0]], told
    two = json.loads(out.read_text())
    assert two.keys() == one.keys()
    assert list(numbers(two)) == pytest.approx(list(numbers(one)), abs=1e-4)


def test_new_text_is_scored_under_both(run, language_model, said, tmp_path):
    (tmp_path / "test.txt").write_text("A man is building a tower .\nTwo men are singing .\n")
    shown = said(
        "gain", run, language_model, tmp_path / "test.txt", "--split", "all", "--out", tmp_path / "g", "--json"
    )
    assert [each["count"] for each in json.loads(shown)["gain"]["positions"]] == [2, 2, 2, 2, 2, 2, 1, 1]


@pytest.fixture(scope="module")
def trained(tiny, cache, tmp_path_factory):
    """Trains models of one vocabulary, whatever the cut; returns a function of the form of their sentences and of other
    settings."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [json.dumps({"text": " ".join(words), "n": made.number}) + "\n" for words, made in captions.draw(120, 5)]
    (folder / "file.jsonl").write_text("".join(rows))
    parts = {"train": rows[:80], "valid": rows[80:100], "test": rows[100:]}
    write_folder(folder / "folder", ".jsonl", **{split: "".join(lines) for split, lines in parts.items()})
    places = {"file": folder / "file.jsonl", "folder": folder / "folder"}
    pieces = DataConfig(path=str(places["file"]), cache=str(cache), tokenizer="bpe", vocabulary_size=280)
    (folder / "tokenizer.json").write_text(corpus.load(corpus.prepare(pieces, False)).vocabulary.definition)

    @functools.cache
    def run(form, *settings):
        found = folder / "runs" / "-".join([form, *settings])
        words = [f"run={found}", f"data.path={places[form]}", *settings, "data.tokenizer=pretrained"]
        words += [f"data.tokenizer_file={folder / 'tokenizer.json'}", "pretrain.max_epochs=0", "train.max_epochs=1"]
        assert train([str(tiny), *words, "kl={policy: constant}"]) == 0
        return found

    return run


def test_models_whose_splits_were_cut_in_two_ways_are_not_compared_on_them(trained, said, tmp_path):
    run, labelled, seeded = trained("file"), trained("file", "data.label=n"), trained("file", "data.seed=1")
    for words, message in (
        ((run, labelled), f"{labelled}: its test sentences are not those of {run}, and it may have been trained on"),
        ((labelled, run), f"{run}: its test sentences are not those of {labelled}, and"),
        ((run, labelled, "data.label=n"), "these: the two differ in data.label; train both on the same splits"),
        ((run, seeded), "these: the two differ in data.seed; train both on the same splits"),
    ):
        line = said("gain", *words, code=2)
        assert message in line
        assert line.count("\n") == 1
    text = tmp_path / "test.txt"
    text.write_text("A man is building a tower .\nTwo men are singing .\n")
    assert said("gain", run, labelled, text, "--split", "all")


def test_labels_do_not_change_which_sentences_are_scored(trained, said):
    run = trained("file")
    assert said("gain", run, run, "data.label=n", "--json") == said("gain", run, run, "--json")


def test_models_of_the_same_splits_are_compared_whichever_labels_they_kept(trained, said):
    run, labelled = trained("folder"), trained("folder", "data.label=n")
    assert (run / "results.json").read_text() != (labelled / "results.json").read_text()
    assert json.loads(said("gain", run, labelled, "--json"))["gain"]["sentences"]["count"] == 20
    assert said("gain", labelled, run, "data.label=n")


def test_models_that_cannot_be_compared_are_refused_with_one_line(run, language_model, tiny, said, tmp_path):
    other, autoencoder = tmp_path / "other", tmp_path / "ae"
    short = ["pretrain.max_epochs=1", "train.max_epochs=0"]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("A man is singing .\nTwo men are singing .\n")
    assert train([str(tiny), f"run={other}", f"data.path={tmp_path}", "train.max_epochs=1"]) == 0
    assert train([str(tiny), f"run={autoencoder}", *short]) == 0
    for words, message in (
        ((run, other), f"{other}: its vocabulary ("),
        ((run, autoencoder), f"{autoencoder}: is an autoencoder; its z has no prior, so it has no NLL"),
        ((autoencoder, run), f"{autoencoder}: is an autoencoder"),
        ((language_model, run), f"{language_model}: is a language model"),
        (
            (run, language_model, "--split", "dev"),
            "--split dev: the sentences have no dev: they have train, valid, test",
        ),
        ((run, tmp_path / "nowhere"), f"{tmp_path / 'nowhere'}: no such folder"),
    ):
        line = said("gain", *words, code=2)
        assert line.startswith(f"distvae: {message}"), line
        assert line.count("\n") == 1
