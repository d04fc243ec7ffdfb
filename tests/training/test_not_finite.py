"""Numbers that are not finite: what stops a run, what is skipped, and what is written of it."""

import copy
import json
import math

import torch
from safetensors.torch import load_file

from distvae.config.load import load_config
from distvae.data import corpus
from distvae.data.plans import training_plan
from distvae.distributed.engines import replicated
from distvae.runs.checkpoints import load_state
from distvae.train import main
from distvae.training import step as train_step
from distvae.training.step import TrainStep
from tests.compare import equal, records


def spoil(gradient, value):
    """Put a value into a gradient, which may hold the rows of a batch's words alone."""
    (gradient._values() if gradient.is_sparse else gradient)[0, 0] = value


def test_numbers_that_are_not_finite_stop_the_run_at_their_step(tiny, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    step, calls = TrainStep.__call__, []

    def poison(self, *arguments):
        calls.append(None)
        if len(calls) == 15:  # in the second epoch of 11 steps
            with torch.no_grad():
                self.engine.module.decoder.output.weight[7, 3] = math.inf
        return step(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", poison)
    assert main([str(tiny), f"run={run}"]) == 2
    said = capsys.readouterr().err
    assert "the loss or gradient of step 15, on sentences" in said
    assert "is not finite (pretrain, epoch 2)" in said
    checkpoint = run / "checkpoints" / "start-0001-step-000000011-epoch-0001"
    assert str(checkpoint) in said
    batch = json.loads((run / "not_finite.json").read_text())
    assert (batch["step"], batch["stage"], batch["epoch"], batch["kl_weight"]) == (15, "pretrain", 2, 0.0)
    config = load_config(tiny)
    sentences = corpus.load(corpus.prepare(config.data, progress=False)).train
    plan = training_plan(sentences.lengths, 8, (config.seed, 0, 2))
    assert batch["sentences"] == plan[3].tolist()
    assert batch["lengths"] == sentences.lengths[plan[3]].tolist()
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert "step 15" in json.loads((run / "status.json").read_text())["reason"]


def test_a_step_that_is_not_finite_can_be_skipped(tiny, tmp_path, monkeypatch):
    """It moves no weight, and is missing in the sums, the counts and what steers γ."""
    run, step = tmp_path / "run", replicated.Replicated.step

    def poison(self):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls in (4, 28):
            spoil(next(iter(self._parameters.values())).grad, math.inf)
            before = {name: p.detach().clone() for name, p in self._parameters.items()}
        norm = step(self)
        if self.calls in (4, 28):
            assert equal(before, self._parameters)
        return norm

    monkeypatch.setattr(replicated.Replicated, "step", poison)
    assert main([str(tiny), f"run={run}", "optimizer.on_nan=skip", "kl.every_steps=4"]) == 0
    rows = records(run)
    assert [row["train"]["skipped"] for row in rows] == [8, 0, 8, 0, 0, 0]
    assert [row["train"]["sentences"] for row in rows] == [73, 81, 73, 81, 81, 81]
    assert all(60 < row["train"]["re"] < 90 for row in rows)


def test_a_loss_that_is_not_finite_counts_though_its_gradient_is(tiny, tmp_path, capsys, monkeypatch):
    """While γ is 0, an infinite KL has no gradient. The step is one of those to be saved, and is not."""
    run, step, calls = tmp_path / "run", TrainStep.__call__, []

    def poison(self, *arguments):
        calls.append(None)
        if len(calls) == 15:
            with torch.no_grad():
                self.engine.module.encoder.posterior.bias[0] = 1e30
        return step(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", poison)
    monkeypatch.setattr(train_step, "kl_per_dimension", lambda mean, log_variance: mean.square() * 1e30)
    assert main([str(tiny), f"run={run}", "checkpoint.every_steps=5"]) == 2
    said = capsys.readouterr().err
    assert "the loss or gradient of step 15, on sentences" in said
    assert load_state((run / "checkpoints" / "latest").resolve()).step == 11


def test_an_epoch_in_which_no_step_is_finite_stops_the_run(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_step, "kl_per_dimension", lambda mean, log_variance: mean / 0)
    assert main([str(tiny), f"run={tmp_path / 'run'}", "optimizer.on_nan=skip"]) == 2
    said = capsys.readouterr().err
    assert "every step is not finite (pretrain, epoch 1)" in said
    assert "on_nan" not in said  # which it has set


def test_a_score_that_is_not_finite_stops_the_run(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "optimizer.learning_rate=1e5", "optimizer.clip_norm=1e5"]) == 2
    said = capsys.readouterr().err
    assert "is not finite" in said
    assert said.count("\n") == 1


def test_a_step_that_is_not_finite_moves_no_weight(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    seen, calls, step = {}, [], replicated.Replicated.step

    def poison(self):
        calls.append(None)
        if len(calls) == 5:
            spoil(next(self.module.parameters()).grad, math.nan)
        if len(calls) in (5, 6):
            seen[len(calls)] = copy.deepcopy(self.module.state_dict())
        return step(self)

    monkeypatch.setattr(replicated.Replicated, "step", poison)
    assert main([str(tiny), f"run={run}"]) == 2
    assert equal(seen[5], seen[6])
