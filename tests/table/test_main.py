"""The table program; and what the demo's rows come to."""

import math
import shlex
import subprocess
import sys

import numpy as np
import pytest

from distvae.config.load import load_config
from distvae.data import corpus
from distvae.runs.results import load_results
from distvae.table.__main__ import main
from tests.conftest import ROOT
from tests.table.rows import ALONE, AUTOENCODER, LANGUAGE_MODEL, NO_SAMPLES, PAPERS


def test_a_plan_is_a_line_a_run_in_the_words_of_a_shell(rows, tmp_path, capsys, monkeypatch):
    folder = rows(ae=AUTOENCODER, kla=ALONE, pt={})
    arguments = ["--rows", str(folder), "--folder", str(tmp_path / "my table"), "--seeds", "4", "--plan"]
    assert main([*arguments, "train.max_epochs=1"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["seed-4/ae", "-"], ["seed-4/kla", "-"], ["seed-4/pt", "seed-4/ae"]]
    for name, _, file, *overrides in lines:
        assert load_config(file, overrides).run == str(tmp_path / "my table" / name)
    assert not (tmp_path / "my table").exists()
    # Nothing waits for what has finished.
    monkeypatch.setattr("distvae.runs.resume.finished", lambda config, run: "results" if run.name == "ae" else None)
    assert main(arguments) == 0
    heads = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [head for head in heads if head[1] != "finished"] == [["seed-4/kla", "-"], ["seed-4/pt", "-"]]


def test_the_folder_has_the_names_of_the_rows_and_the_corpus(rows, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("data: {train_size: 21}")
    for more, name in ([], "rows"), (["--corpus", str(tmp_path / "mine.yaml")], "rows-mine"):
        configs = tmp_path / "rows" if (tmp_path / "rows").exists() else rows(kla=ALONE)
        assert main(["--rows", str(configs), "--seeds", "0", "--plan", *more]) == 0
        assert f"run=runs/table/{name}/seed-0/kla" in capsys.readouterr().out


@pytest.mark.parametrize("seeds", ["1,1", "1,x", "", "-1,2"])
def test_seeds_are_different_numbers(capsys, seeds):
    with pytest.raises(SystemExit) as ended:
        main([f"--seeds={seeds}"])
    assert ended.value.code == 2
    assert f"{seeds!r}: should be" in capsys.readouterr().err.splitlines()[-1]


def test_sentences_that_are_not_there_are_refused(refused, rows, tmp_path):
    """Before any run says so, and each in its own log."""
    assert "data.path=nowhere" in refused("--rows", rows(ae=AUTOENCODER, kla=ALONE), "data.path=nowhere")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--label", "intent"], "--label: names columns for --probe; give both"),
        (["--probe", "--label", "who"], "--label who: label: not for data.path=captions"),
        (["--probe", "data.path={text}"], "has no labels to probe for; name a column by --label COLUMN"),
        (["--probe", "--label", "mood", "data.path={text}"], "mood"),
    ],
)
def test_labels_are_looked_for_before_anything_is_trained(refused, rows, tmp_path, given, said):
    for split in ("train", "valid", "test"):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{split}.jsonl").write_text('{"text": "a dog"}\n' * 30)
    text = [word.format(text=tmp_path / "text") for word in given]
    assert said in refused("--rows", rows(kla=ALONE), *text)
    assert not (tmp_path / "table").exists()


def test_rows_are_probed_for_the_report(rows, tmp_path, capsys):
    """Also those of a table that has finished without."""
    pytest.importorskip("sklearn")
    configs = rows(kla=ALONE, lm=LANGUAGE_MODEL)
    command = ["--rows", str(configs), "--folder", str(tmp_path / "table"), "--seeds", "0"]
    assert main([*command, *NO_SAMPLES]) == 0
    assert "What z knows" not in (tmp_path / "table" / "report.md").read_text()
    for said in (True, False):
        capsys.readouterr()
        assert main([*command, *NO_SAMPLES, "--probe"]) == 0
        shown = capsys.readouterr().out
        assert ("seed-0/kla: probed\n" in shown) is said
        assert "accuracy in % on test of linear probes" in shown.lower()
    assert "What z knows" in (tmp_path / "table" / "report.md").read_text()


def unigram_nll(sentences):
    """What the test sentences score, in nats each, under the frequencies of words and ``</s>`` in the training ones."""
    counts = np.bincount(np.concatenate([ids[1:] for ids in sentences.train]), minlength=len(sentences.vocabulary))
    return np.mean([-np.log(counts[ids[1:]] / counts.sum()).sum() for ids in sentences.test])


@pytest.mark.long
def test_the_demos_rows_collapse_and_are_cured_as_the_paper_says(cache, tmp_path):
    """The held-out check: as a user trains them, two at a time on a core each, some five minutes on two free ones."""
    command = [sys.executable, "launch/table.py", "--rows", "configs/demo", "--seeds", "0", "--side-by-side", "2"]
    given = ["--folder", str(tmp_path), f"data.cache={cache}"]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    runs = {name: tmp_path / "seed-0" / name for name in PAPERS}
    found = {name: load_results(run) for name, run in runs.items()}
    assert (tmp_path / "report.html").exists()
    scores = {name: results.scores for name, results in found.items()}
    rate = load_config(runs["pt_kla_sfb"] / "config.yaml").kl.rate

    collapsed, cured = scores["kla"], scores["pt_kla_sfb"]
    assert collapsed.kl.mean < 0.3
    assert collapsed.active_units <= 2
    assert cured.kl.mean == pytest.approx(rate, rel=0.15)
    assert cured.active_units >= 3
    assert cured.mutual_information.mean > cured.kl.mean / 2

    # Pretraining holds no KL by itself, and free bits hold each dimension at its share of λ.
    assert scores["pt_kla"].kl.mean < rate / 4
    held = np.array(scores["pt_kla_fb"].kl_per_dimension) * len(scores["pt_kla_fb"].kl_per_dimension) / rate
    assert held.mean() == pytest.approx(1, rel=0.2)
    assert held.min() > 0.5
    assert held.max() < 2

    unigram = unigram_nll(corpus.load(cache / found["kla"].data))
    for name in PAPERS[1:]:
        nll, floor = scores[name].nll, found[name].floor.nll
        assert nll.mean - floor.mean > 3 * math.hypot(nll.standard_error, floor.standard_error), name
        assert nll.mean < unigram, name
        assert scores[name].bound_holds, name
