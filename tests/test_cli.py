"""`distvae` on a run's folder and on its exported best/ folder."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch

from distvae.api import load
from distvae.cli import main
from distvae.data.vocabulary import Vocabulary
from distvae.model.vae import model_of
from distvae.runs import checkpoints
from tests.paper_folders import config_of


@pytest.fixture
def run(finished):
    return finished


def test_evaluate_gives_the_scores_that_training_ended_with(run, said):
    results = json.loads((run / "results.json").read_text())
    for folder in (run, run / "best"):
        found = json.loads(said("evaluate", folder, "--json"))
        assert found["scores"] == results["scores"]
        assert found["floor"] == results["floor"]


def test_evaluate_warns_of_other_sentences_than_the_runs_own(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "moved", symlinks=True)
    results = tmp_path / "moved" / "results.json"
    trained_on = json.loads(results.read_text())["data"]
    for folder, warns in ((run, False), (tmp_path / "moved" / "best", True), (tmp_path / "moved", True)):
        results.write_text(results.read_text().replace(trained_on, "0123456789abcdef"))
        capsys.readouterr()
        assert main(["evaluate", str(folder), "--importance-samples", "2"]) == 0
        assert ("those of its own results (0123456789abcdef)" in capsys.readouterr().err) == warns


def test_evaluate_takes_split_samples_and_seed(run, said):
    valid = json.loads(said("evaluate", run, "--split", "train", "--importance-samples", "3", "--seed", "5", "--json"))
    assert valid["split"] == "train"
    assert valid["scores"]["sentences"] == 81
    assert valid["scores"]["importance_samples"] == 3
    assert valid["scores"]["seed"] == 5
    table = said("evaluate", run, "--importance-samples", "3")
    assert all(row in table for row in ("RE", "KL", "−ELBO", "NLL", "PPL", "AU", "MI", "floor"))


def test_sample(run, said):
    ten = said("sample", run, "--count", "10").splitlines()
    assert len(ten) == 10
    assert said("sample", run, "-n", "4").splitlines() == ten[:4]
    found = json.loads(said("sample", run, "--method", "sample", "--top-p", "0.9", "--temperature", "0.7", "--json"))
    assert len(found["sentences"]) == 10
    assert found["decoding"]["top_p"] == 0.9
    fewer = said("sample", run, "-n", "3", "--method", "sample", "--top-p", "0.9", "--temperature", "0.7").splitlines()
    assert fewer == found["sentences"][:3]
    again = json.loads(said("sample", run / "best", "--method", "sample", "--seed", "1", "--json"))
    assert again["sentences"] != found["sentences"]


def test_sample_from_a_mixture(run, said):
    words = ["sample", run, "--prior", "mixture", "--components", "4"]
    drawn = said(*words, "-n", "6").splitlines()
    assert len(drawn) == 6
    assert said(*words, "-n", "3").splitlines() == drawn[:3]
    assert json.loads(said(*words, "-n", "6", "--json"))["sentences"] == drawn
    assert load(run).sample(6, prior="mixture", components=4) == drawn
    assert said("sample", run, "-n", "6", "--method", "sample") == said(
        "sample", run, "-n", "6", "--method", "sample", "--prior", "normal"
    )


def test_interpolate(run, said):
    assert len(said("interpolate", run).splitlines()) == 11
    sentence = "A man is building a tower ."
    ends = said("interpolate", run, "--start", sentence, "--end", sentence, "--steps", "3").splitlines()
    assert len(ends) == 3
    assert len(set(ends)) == 1
    rebuilt = json.loads(said("reconstruct", run, sentence, "--json"))["sentences"][0]
    assert rebuilt == {"sentence": sentence, "reconstruction": ends[0]}


@pytest.mark.parametrize(
    "words",
    [
        ["{run}", "--method", "beam", "{sentence}", "{sentence}"],
        ["--method=beam", "{run}", "{sentence}", "--json", "{sentence}"],
        ["{run}", "{sentence}", "{sentence}", "--method", "beam"],
        ["{run}", "--method", "beam", "--", "{sentence}", "{sentence}"],
    ],
)
def test_options_of_reconstruct_come_anywhere(run, said, words):
    sentence = "A man is building a tower ."
    words = [word.format(run=run, sentence=sentence) for word in words]
    found = json.loads(said("reconstruct", "--json", *words))
    assert found["decoding"]["method"] == "beam"
    assert [pair["sentence"] for pair in found["sentences"]] == [sentence, sentence]


def test_options_come_between_runs(run, said):
    assert said("compare", run, "--json", run) == said("compare", "--json", run, run)
    assert "→" in said("reconstruct", run, "--", "A man is building a tower .")


def test_reconstruct_reads_standard_input(run, said, monkeypatch):
    text = "\ufeffA man is building a tower .\r\n\n Two men are building a tower ."
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    lines = said("reconstruct", run, "--method", "beam", "--beam-size", "3").splitlines()
    assert lines[0] == "A man is building a tower ."
    assert lines[1].startswith("  → ")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Two men sleep .\n\xe9\n", "standard input, line 2: is not UTF-8; convert it"),
        (b"Two men\0 sleep .\n", "standard input, line 1: contains a NUL byte"),
        ("Two men".encode("utf-16"), "standard input: is UTF-16, not UTF-8"),
        (b" \n", "no sentences to reconstruct; give them as arguments"),
    ],
)
def test_standard_input_that_is_no_text_gets_one_line(run, said, monkeypatch, content, message):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), errors="surrogateescape"))
    assert said("reconstruct", run, code=2).startswith(f"distvae: {message}")


def test_too_little_memory_gets_one_line(run, said, monkeypatch):
    def decode(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("distvae.evaluation.generation.decode", decode)
    assert said("sample", run, code=2).startswith("distvae: out of memory: ")


def test_a_reader_that_has_seen_enough_is_no_error(run):
    command = f"{sys.executable} -m distvae.cli sample {run} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_compare_sets_runs_side_by_side(run, said):
    results = json.loads(said("compare", run, "--json"))
    assert results["finished"]["scores"] == json.loads((run / "results.json").read_text())["scores"]
    assert "finished" in said("compare", run)


def test_a_language_model_is_sampled_word_by_word(language_model, said):
    drawn = said("sample", language_model, "--count", "8").splitlines()
    assert len(set(drawn)) > 4
    assert said("sample", language_model, "-n", "3", "--temperature", "1").splitlines() == drawn[:3]
    assert len(set(said("sample", language_model, "--method", "greedy").splitlines())) == 1


def test_a_language_model_is_compared_with_a_vae(run, language_model, said, tmp_path):
    results = json.loads((language_model / "results.json").read_text())
    assert json.loads(said("evaluate", language_model, "--json"))["scores"] == results["scores"]
    found = json.loads(said("compare", run, language_model, "--json"))
    assert found["language_model"]["scores"]["nll"] == found["language_model"]["scores"]["re"]
    assert "0 of 0" in said("compare", run, language_model)
    report = json.loads(said("report", run, language_model, "--out", tmp_path, "--json"))["tables"]
    assert sorted(row[0] for row in report["Methods"][1:]) == ["LSTM-LM", "PT + KLA + SFB + 20% word dropout"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "{run}", "A man ."], "{run}: is a language model; it has no latent variable"),
        (["interpolate", "{run}"], "{run}: is a language model; it has no latent variable"),
        (["sample", "{run}", "--prior", "mixture"], "{run}: is a language model; it has no latent variable to fit a"),
        (["posterior", "{run}"], "{run}: is a language model; it has no latent variable"),
        (["evaluate", "{run}", "--importance-samples", "5"], "--importance-samples: {run} is a language model"),
        (["evaluate", "{run}", "--seed", "5"], "--seed: {run} is a language model"),
    ],
)
def test_what_needs_a_latent_variable_is_one_line_without_one(language_model, said, arguments, message):
    line = said(*(argument.format(run=language_model) for argument in arguments), code=2)
    assert line.startswith(f"distvae: {message.format(run=language_model)}")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "{run}/nowhere"], ["nowhere: no such folder; give a run folder, an exported folder or a hub id"]),
        (["compare", "{run}/best"], ["results.json"]),
        (["compare", "{run}", "nope"], ["nope: no such run folder; compare reads the results of run folders"]),
        (["compare", ""], ["distvae: '': no such run folder"]),
        (["evaluate", "{run}", "--data", "nowhere"], ["nowhere"]),
        (["evaluate", "{run}", "--importance-samples", "0"], ["--importance-samples: '0': should be a whole number"]),
        (["sample", "{run}", "--count", "0"], ["--count/-n: '0'"]),
        (["sample", "{run}", "--count", "99999999999"], ["--count/-n: '99999999999': should be at most 2147483647"]),
        (["sample", "{run}", "--prior", "mixture", "--seed", "-1"], ["--seed: '-1': should be a whole number"]),
        (["sample", "{run}", "--top-k", "3"], ["top_k belongs to method sample"]),
        (["sample", "{run}", "--components", "3"], ["components 3: belongs to the prior mixture, not to normal"]),
        (["sample", "{run}", "--prior", "mixtur"], ["--prior"]),
        (["sample", "{run}", "--method", "sample", "--temperature", "0"], ["temperature 0"]),
        (["interpolate", "{run}", "--steps", "1"], ["--steps: '1'"]),
        (["reconstruct", "{run}", "An unheard-of word ."], ["'An'", "vocabulary"]),
    ],
)
def test_bad_input_gets_one_line(run, said, arguments, words):
    line = said(*(argument.format(run=run) for argument in arguments), code=2)
    assert line.startswith("distvae: ")
    assert line.count("\n") == 1
    assert all(word in line for word in words), line


def test_the_command_is_installed(run):
    done = subprocess.run(
        [sys.executable, "-m", "distvae.cli", "sample", str(run), "-n", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


HOSTILE = ["\x1b[31mred", "\x9b2J", "\u202egnp", "می\u200cخواهم", "a\x07"]


@pytest.fixture
def hostile(tmp_path):
    """An export whose words are terminal codes, and one word of Persian."""
    config, vocabulary = config_of("kla", tmp_path), Vocabulary.closed(HOSTILE)
    model = model_of(config, len(vocabulary), vocabulary.pad, vocabulary.unknown)
    with torch.no_grad():
        model.decoder.output.weight[: vocabulary.unknown + 1] = 0  # only words are drawn
    checkpoints.export(tmp_path / "best", model.state_dict(), config, vocabulary)
    return tmp_path / "best"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda value: value * float("nan"), "are not all finite"),
        (lambda value: value.double(), "are torch.float64, and should be torch.float32"),
        (lambda value: value[:1], "and should be"),
    ],
)
def test_weights_that_a_manifest_vouches_for_are_checked_all_the_same(tmp_path, said, spoil, message):
    config, vocabulary = config_of("kla", tmp_path), Vocabulary.closed(["a", "b"])
    weights = model_of(config, len(vocabulary), vocabulary.pad, vocabulary.unknown).state_dict()
    weights["encoder.embedding.weight"] = spoil(weights["encoder.embedding.weight"]).contiguous()
    checkpoints.export(tmp_path / "best", weights, config, vocabulary)
    line = said("sample", tmp_path / "best", code=2)
    assert message in line
    assert "encoder.embedding.weight" in line


@pytest.mark.parametrize("command", [["sample"], ["interpolate"], ["reconstruct", *["\u202egnp"] * 20]])
def test_no_word_reaches_the_terminal_as_a_code(hostile, said, command):
    name, *sentences = command
    for more in ([], ["--json"]):
        out = said(name, hostile, *sentences, "--method", "sample", "--seed", "1", *more)
        assert not set("\x1b\x9b\u202e\x07") & set(out)
        assert "می\u200cخواهم" in out
    words = json.dumps(json.loads(out)["sentences"], ensure_ascii=False)
    assert "\\u001b" in words
    assert "\u202e" in words


def test_no_result_reaches_the_terminal_as_a_code(run, said, tmp_path):
    other = tmp_path / "\x1b[31mred \u202eב"
    shutil.copytree(run, other)
    assert "\\x1b[31mred \\u202eב" in said("compare", run, other).splitlines()[1]
    assert "\x1b" not in said("compare", run, other, "--json")
    results = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps(results | {"split": "\x1b]0;title\x07"}))
    assert "\\x1b]0;title\\x07" in said("compare", run, other)
    (other / "results.json").write_text(json.dumps(results | {"vocabulary": "\x1b[31m"}))
    assert "\x1b" not in said("compare", run, other, code=2)
