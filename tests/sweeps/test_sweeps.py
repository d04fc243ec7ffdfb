"""Sweeps with real Ray, as users start them."""

import json

import pytest

from distvae.config.load import load_config
from distvae.runs.records import read_metrics
from distvae.sweeps.ranking import outcome, rank
from distvae.sweeps.storage import open_sweep
from tests.compare import numbers
from tests.conftest import PATIENCE
from tests.sweeps.programs import SET, after_pretraining, alone, run, start, trials, until, write

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray")]


def test_a_trial_is_the_training_and_the_sweep_tells_of_it(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        space={"kl.target_rate": {"grid": [0.3, 0.6]}, "kl.multiplier": {"choice": [0.1, 0.2]}},
        finalists={"count": 1, "importance_samples": 60},
    )
    folder = tmp_path / "sweep"
    said, _ = run(file)
    assert "2 of 2 done, 0 running, 0 failed" in said
    found = trials(folder)
    assert [(trial["state"], trial["starts"]) for trial in found] == [("finished", 1)] * 2
    # The pretraining is shared, and each trial equals the same run by itself.
    assert len(list((folder / "pretrained").iterdir())) == 1
    one = alone(tmp_path, tiny, **found[1]["values"])
    assert after_pretraining(folder / "trials" / "0001") == after_pretraining(one)
    best = rank(
        open_sweep(folder).config.objective,
        {
            trial["number"]: outcome(
                load_config(folder / "trials" / f"{trial['number']:04d}" / "config.yaml"),
                read_metrics(folder / "trials" / f"{trial['number']:04d}"),
            )
            for trial in found
        },
    )[0]
    finalist = json.loads((folder / "finalists" / f"{best:04d}.json").read_text())
    assert {split: scores["scores"]["importance_samples"] for split, scores in finalist.items()} == {
        "valid": 60,
        "test": 60,
    }
    assert (folder / "sweep.html").exists()
    # The same command has nothing left to do.
    said, _ = run(file)
    assert trials(folder) == found
    # Another sweep does not change it.
    _, error = run(file, "seed=1", code=2)
    assert error.count("\n") == 1
    assert "seed (0 there, 1 here)" in error


def test_trials_that_fail_are_told_of_and_the_others_go_on(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        set=SET | {"pretrain.max_epochs": 0},
        space={
            "optimizer.learning_rate": {"grid": [0.1, 1e30]},
            "model.hidden_size": {"grid": [16, 30_000_000]},
            "seed": {"grid": [0]},
        },
        max_restarts=1,
    )
    folder = tmp_path / "sweep"
    said, _ = run(file)
    found = trials(folder)
    assert [trial["state"] for trial in found] == ["finished", "failed", "failed", "failed"]
    reasons = {(t["values"]["model.hidden_size"], t["values"]["optimizer.learning_rate"]): t["reason"] for t in found}
    assert "not finite" in reasons[16, 1e30]
    assert "out of memory" in reasons[30_000_000, 0.1]
    # Numbers that are not finite would come again, so such trials are not retried.
    assert [trial["starts"] for trial in found] == [1] * 4
    assert "1 of 4 done, 0 running, 3 failed" in said
    for name in ("sweep.html", "sweep.md"):
        assert "not finite" in (folder / name).read_text(encoding="utf-8")


def test_a_trial_that_raises_is_tried_again_and_then_told_of(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}, max_restarts=1)
    broken = tmp_path / "sweep" / "trials" / "0000" / "starts"
    process = start(file)
    until(lambda: (tmp_path / "sweep" / "pretrained").is_dir(), "there is a pretraining", process)
    broken.parent.mkdir(parents=True)
    (broken.parent / "metrics.jsonl").write_text("no JSON\n")
    (broken.parent / "config.yaml").write_text("")
    said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    found = trials(tmp_path / "sweep")
    assert [trial["state"] for trial in found] == ["failed", "finished"]
    assert found[0]["reason"]
    assert (tmp_path / "sweep" / "logs" / "0000.log").read_text().count("Traceback") >= found[0]["starts"] - 1


def test_two_processes_of_a_trial_give_what_one_gives(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, trial={"workers": 2})
    run(file)
    folder = tmp_path / "sweep" / "trials" / "0000"
    assert json.loads((folder / "results.json").read_text())["world_size"] == 2
    for here, there in zip(numbers(folder), numbers(alone(tmp_path, tiny)), strict=True):
        for key in ("stage", "epoch", "kl_weight", "learning_rate", "verdict"):
            assert here[key] == there[key]
        assert here["train"]["kl"] == pytest.approx(there["train"]["kl"], rel=2e-5)
        if here["stage"] == "train":
            assert here["valid"]["nll"]["mean"] == pytest.approx(there["valid"]["nll"]["mean"], rel=2e-5)


def test_what_no_node_has_is_refused(tmp_path, tiny):
    _, error = run(write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, trial={"cpus": 1024}), code=2)
    assert "no node has more than" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_sentences_that_are_not_there_are_refused(tmp_path, tiny):
    """No folder is left, so that the corrected sweep can use it."""
    wrong = {"data.path": str(tmp_path / "nowhere")}
    _, error = run(write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, set=wrong), code=2)
    assert "nowhere" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_a_dry_run_writes_nothing(tmp_path, tiny):
    said, _ = run(write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}), "--dry-run")
    assert "2 trials, each with 1 CPU and 1 GPU" in said
    assert not (tmp_path / "sweep").exists()
