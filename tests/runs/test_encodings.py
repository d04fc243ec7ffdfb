"""``distvae encode`` and ``distvae score`` on new text, as a user runs them."""

import json
import math
import shutil

import numpy as np
import pytest
from pyarrow import parquet

import distvae
from distvae.cli import main
from distvae.data import captions
from distvae.tokenization import BUILT_IN

SENTENCES = [BUILT_IN["words"].join(words) for words in captions.generate(7, 11)]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text, "kind": text[-2]}) for text in SENTENCES]
    path.write_text("".join(f"{line}\n" for line in [*lines[:3], '{"text": "", "kind": "blank"}', *lines[3:]]))
    return path


def test_encodings_are_those_of_the_api(finished, rows, tmp_path, capsys):
    out = tmp_path / "folder" / "z.parquet"
    assert main(["encode", str(finished), str(rows), "data.label=kind", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"all: 1 empty line left out\n{out}: 7 sentences\n"
    found = parquet.read_table(out)
    expected = distvae.load(finished).encode(SENTENCES)
    assert found["sentence"].to_pylist() == SENTENCES
    assert found["label.kind"].to_pylist() == [text[-2] for text in SENTENCES]
    assert set(found["split"].to_pylist()) == {"all"}
    np.testing.assert_allclose(np.stack(found["mean"].to_pylist()), expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.stack(found["log_variance"].to_pylist()), expected.log_variance, rtol=1e-5, atol=1e-6)
    kl = 0.5 * (expected.mean**2 + expected.log_variance.exp() - 1 - expected.log_variance).sum(dim=1)
    np.testing.assert_allclose(found["kl"].to_numpy(), kl, rtol=1e-4)


def test_without_text_the_runs_own_sentences_are_encoded(finished, tmp_path, capsys):
    out = tmp_path / "z.parquet"
    assert main(["encode", str(finished), "--out", str(out), "--json"]) == 0
    counts = {"train": 81, "valid": 20, "test": 20}
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "sentences": counts}
    found = parquet.read_table(out)
    assert {split: found["split"].to_pylist().count(split) for split in counts} == counts
    assert len(set(found["sentence"].to_pylist())) > 50


def test_scores_are_those_of_the_api(finished, rows, tmp_path, capsys):
    out = tmp_path / "scores.parquet"
    assert main(["score", str(finished), str(rows), "data.label=[kind]", "--out", str(out), "--json"]) == 0
    ((name, results),) = json.loads(capsys.readouterr().out).items()
    scores = results["scores"]
    assert (name, results["split"], scores["sentences"]) == ("finished", "all", 7)
    nats = -distvae.load(finished).log_likelihood(SENTENCES)
    assert math.isclose(scores["nll"]["mean"], nats.mean(), rel_tol=1e-6)
    bits = nats.sum() / math.log(2) / sum(len(text) + 1 for text in SENTENCES)
    assert math.isclose(scores["bpc"]["mean"], bits, rel_tol=1e-6)
    found = parquet.read_table(out)
    assert found["sentence"].to_pylist() == SENTENCES
    assert found["label.kind"].to_pylist() == [text[-2] for text in SENTENCES]
    np.testing.assert_allclose(found["nll"].to_numpy(), nats, rtol=1e-6)


def test_text_on_standard_input(finished, rows, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"{text}\n" for text in SENTENCES))
    with path.open() as text:
        monkeypatch.setattr("sys.stdin", text)
        assert main(["score", str(finished), "-", "--importance-samples", "2", "--seed", "3"]) == 0
    table = capsys.readouterr().out
    assert "7 sentences" in table
    assert "K = 2" in table
    assert "seed 3" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["score", "{run}", "{rows}", "data.distinct=true"],
            "data.distinct: does not apply to text for a trained model",
        ),
        (["score", "{run}", "{rows}", "model.latent_size=3"], "model.latent_size=3: is not a setting of data"),
        (["score", "{run}", "{rows}", "data.cloumms=[a]"], "unknown key data.cloumms; did you mean data.columns?"),
        (["score", "{run}", "{rows}", "data.columns=[kind]"], "is not one of the 497 words"),
        (["score", "{run}", "/nowhere"], "data.path=/nowhere: no such file"),
        (["encode", "{run}", "{rows}", "--out", "-"], "argument --out: '-': should be the name of a file"),
        (["score", "{run}", "{rows}", "--out", ""], "argument --out: '': should be the name of a file"),
        (["score", "{run}", "{rows}", "--out", "{rows}"], "rows.jsonl: is a file that is read; name another one"),
        (["encode", "{run}", "{rows}", "--out", "{rows}"], "rows.jsonl: is a file that is read; name another one"),
        (["score", "{run}", "{folder}/*.jsonl", "--out", "{rows}"], "rows.jsonl: is a file that is read"),
        (["encode", "{run}", "{rows}", "--out", "{rows}/z"], "rows.jsonl/z: cannot be written: Not a directory"),
        (["encode", "{run}", "{rows}", "--out", "/proc/z.parquet"], "/proc/z.parquet: cannot be written"),
        (["encode", "{run}", "data.seed=4", "model.latent_size=3", "--out", "z"], "is not a setting of data"),
        (["encode", "{lm}", "{rows}", "--out", "z"], "is a language model; it has no latent variable"),
    ],
)
def test_bad_input_is_one_line(finished, language_model, rows, tmp_path, said, words, message):
    places = {"run": finished, "lm": language_model, "rows": rows, "folder": tmp_path}
    before = rows.read_text()
    error = said(*(word.format(**places) for word in words), code=2)
    assert message in error
    assert error.count("\n") == 1
    assert rows.read_text() == before


def test_what_cannot_be_written_is_known_before_the_work(finished, rows, tmp_path, said, monkeypatch):
    monkeypatch.setattr("distvae.runs.reading.new_sentences", None)
    for command in ("encode", "score"):
        assert "is a folder, and should be" in said(command, finished, rows, "--out", tmp_path, code=2)


def test_where_the_run_folder_takes_no_file_an_option_is_named(finished, tmp_path, said):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "posterior.json").mkdir()
    error = said("posterior", run, code=2)
    assert error.endswith(
        "/posterior.json: is a folder, and should be a file to write; name another file by --out FILE\n"
    )


def test_a_link_is_written_through(finished, rows, tmp_path, said):
    (tmp_path / "elsewhere").mkdir()
    real, out = tmp_path / "elsewhere" / "z.parquet", tmp_path / "link.parquet"
    out.symlink_to(real)
    for _ in "new", "old":
        said("encode", finished, rows, "--out", out)
        assert out.readlink() == real
        assert len(parquet.read_table(real)) == 7


def test_a_failure_leaves_nothing(finished, rows, cache, tmp_path, capsys):
    before = sorted(cache.iterdir())
    out = tmp_path / "z.parquet"
    out.mkdir()
    assert main(["encode", str(finished), str(rows), "--out", str(out)]) == 2
    assert f"{out}: is a folder, and should be a file to write" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [rows, out]
    assert sorted(cache.iterdir()) == before
