"""Runs of aggressive training: what moved on which batch, and everything that may come between two steps."""

import copy
import json
import math
import os
import signal

import pytest
import torch

from distvae.config.load import load_config
from distvae.data import corpus
from distvae.data.plans import training_plan
from distvae.distributed.engines import replicated
from distvae.distributed.engines.base import optimizer_state
from distvae.distributed.sync import RankSync
from distvae.runs.checkpoints import load_state
from distvae.train import main
from distvae.training.step import TrainStep
from tests.compare import equal, numbers, records, weights
from tests.methods.test_lagging import published

MOST, CHECK = 7, 2
SETTINGS = [
    "data.train_size=41", "pretrain.max_epochs=0", "train.max_epochs=4", "kl={policy: linear, anneal_epochs: 1}",
    "optimizer.name=adamw", "optimizer.learning_rate=0.02", "optimizer.weight_decay=0.1", "optimizer.warmup_steps=5",
    "evaluation.samples=0",
    f"inference={{training: aggressive, max_steps: {MOST}, check_every: {CHECK}}}",
]  # fmt: skip
OFTEN = ["checkpoint.every_steps=1", "checkpoint.keep=999"]


class Spy:
    """Records each step: its key, what moved, its batch, its loss and tokens; and sees what did not move."""

    def __init__(self):
        self.steps = []
        self.step = TrainStep.__call__

    def __call__(self, train_step, split, batch, key, objective, part):
        model, engine = train_step.engine.module, train_step.engine
        names = [name for name, _ in model.named_parameters()]

        def held():
            return copy.deepcopy(model.state_dict() | optimizer_state(engine, names))

        before = held()
        result = self.step(train_step, split, batch, key, objective, part)
        for name, value in held().items():
            moves = part == "all" or f"{part}." in name or name.endswith(f".{part}")
            assert torch.equal(value, before[name]) != moves, (key, name)
        tokens = int(split.lengths[batch].sum()) - len(batch)
        self.steps.append((key, part, batch.tolist(), result.sums[:, 2].sum().item(), tokens))
        return result


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """An uninterrupted run, saved at every step, and its steps."""
    run, spy = tmp_path_factory.mktemp("aggressive") / "run", Spy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", lambda *given: spy(*given))
        assert main([str(tiny), *SETTINGS, *OFTEN, f"run={run}"]) == 0
    return run, spy.steps


def test_steps_are_those_of_the_loop_by_hand(straight, tiny):
    run, steps = straight
    rows = records(run)
    config = load_config(tiny, SETTINGS)
    sentences = corpus.load(corpus.prepare(config.data, progress=False)).train
    left, aggressive, information, lengths = list(steps), True, 0.0, set()
    for row in rows:
        plan = training_plan(sentences.lengths, 8, (config.seed, 1, row["epoch"]))
        batches, total = [batch.tolist() for batch in plan], 0
        for number, outer in enumerate(batches, 1):
            inner = []
            while left[0][1] == "encoder":
                inner.append(left.pop(0))
            if aggressive:
                assert inner[0][2] == outer
                assert all(batch in batches for _, _, batch, *_ in inner)
                keys = [("train", row["epoch"], number, place) for place in range(1, len(inner) + 1)]
                assert [key for key, *_ in inner] == keys
                losses, tokens = [step[3] for step in inner], [step[4] for step in inner]
                # Had the loop gone on, the sums of later steps would not matter.
                rest = MOST - len(inner)
                assert published(losses + [0.0] * rest, tokens + [1] * rest, MOST, CHECK) == len(inner)
                lengths.add(len(inner))
            else:
                assert not inner
            key, part, batch, *_ = left.pop(0)
            assert (key, part, batch) == (("train", row["epoch"], number), "decoder" if aggressive else "all", outer)
            total += len(inner)
        assert row["encoder_steps"] == (total if aggressive else None)
        assert row["train"]["sentences"] == 41
        now = max(row["valid"]["mutual_information"]["mean"], 0.0)
        aggressive, information = aggressive and now >= information, now
    assert not left
    assert rows[-1]["step"] == len(steps)
    assert len(lengths) > 1  # some loops ended early
    assert [row["encoder_steps"] is None for row in rows] == [False, False, True, True]


def test_further_batches_are_drawn_from_all(straight):
    _, steps = straight
    drawn = [tuple(batch) for key, _, batch, *_ in steps if len(key) == 4 and key[3] > 1]
    assert len(set(drawn)) == 12  # 6 of each of two epochs


@pytest.mark.parametrize("place", [1, 3, 6])  # steps of the encoder that a loop has made: a check is after 4
def test_a_run_resumes_within_the_loop_to_the_same_bits(straight, tiny, tmp_path, place):
    run, steps = straight
    last = max(i for i, (key, *_) in enumerate(steps) if len(key) == 4 and key[3] == place and key[1:3] >= (1, 3)) + 1
    (saved,) = (run / "checkpoints").glob(f"*-step-{last:09d}-*")
    state = load_state(saved)
    assert state.turns["steps"] == place
    assert state.encoder_steps > 0
    resumed = tmp_path / "run"
    assert main([str(tiny), *SETTINGS, *OFTEN, f"run={resumed}", f"resume={saved}"]) == 0
    assert equal(weights(resumed), weights(run))
    assert numbers(resumed) == numbers(run)[-len(records(resumed)) :]
    ends = [load_state((folder / "checkpoints" / "latest").resolve()) for folder in (run, resumed)]
    assert (ends[0].step, ends[0].turns) == (ends[1].step, ends[1].turns)


def test_a_signal_is_heard_within_the_loop(straight, tiny, tmp_path, monkeypatch, capsys):
    run, calls, step = tmp_path / "run", [], TrainStep.__call__

    def interrupt(self, *arguments):
        calls.append(arguments[2])
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", interrupt)
    monkeypatch.setattr(RankSync, "due", lambda self: True)
    assert main([str(tiny), *SETTINGS, f"run={run}"]) == 75
    assert calls[-1] == ("train", 1, 1, 4)
    state = load_state((run / "checkpoints" / "latest").resolve())
    assert (state.step, state.batches, state.encoder_steps, state.recorded_step) == (4, 0, 4, 0)
    assert "interrupted at step 4 by SIGTERM" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([str(tiny), *SETTINGS, f"run={run}"]) == 0
    assert equal(weights(run), weights(straight[0]))
    assert numbers(run) == numbers(straight[0])


def test_an_encoder_step_that_is_not_finite_names_its_batch(straight, tiny, tmp_path, monkeypatch):
    run, step = tmp_path / "run", TrainStep.__call__
    place, (_, part, batch, *_) = next((i, one) for i, one in enumerate(straight[1]) if one[0][3:] == (3,))
    assert part == "encoder"

    def poison(self, split, batch, key, *others):
        if key[3:] == (3,):
            with torch.no_grad():
                self.engine.module.decoder.output.weight[7, 3] = math.inf
        return step(self, split, batch, key, *others)

    monkeypatch.setattr(TrainStep, "__call__", poison)
    assert main([str(tiny), *SETTINGS, f"run={run}"]) == 2
    found = json.loads((run / "not_finite.json").read_text())
    assert (found["step"], found["sentences"]) == (place + 1, batch)


def test_an_encoder_step_that_is_not_finite_can_be_skipped(tiny, tmp_path, monkeypatch):
    """Its epoch counts no sentence less, because its sums are those of the decoder's steps."""
    run, step, calls = tmp_path / "run", replicated.Replicated.step, []

    def poison(self):
        calls.append(None)
        if len(calls) == 2:
            next(self.module.parameters()).grad[0, 0] = math.nan
            before = copy.deepcopy(self.module.state_dict())
        norm = step(self)
        if len(calls) == 2:
            assert equal(before, self.module.state_dict())
        return norm

    monkeypatch.setattr(replicated.Replicated, "step", poison)
    assert main([str(tiny), *SETTINGS, "optimizer.on_nan=skip", "train.max_epochs=1", f"run={run}"]) == 0
    assert records(run)[0]["train"]["sentences"] == 41
    assert records(run)[0]["train"]["skipped"] == 0


@pytest.mark.parametrize("policy", ["lagrangian, target_rate: 4", "pi_control, integral: 0.1, target_rate: 4"])
def test_gamma_moves_with_the_decoder(tiny, tmp_path, monkeypatch, policy):
    seen, step = [], TrainStep.__call__

    def spy(self, split, batch, key, objective, part):
        before = objective.gamma.value
        result = step(self, split, batch, key, objective, part)
        seen.append((part, objective.gamma.value != before))
        return result

    monkeypatch.setattr(TrainStep, "__call__", spy)
    settings = [*SETTINGS, f"kl={{policy: {policy}}}", "train.max_epochs=1"]
    assert main([str(tiny), *settings, f"run={tmp_path / 'run'}"]) == 0
    assert {moved for part, moved in seen if part == "encoder"} == {False}
    assert {moved for part, moved in seen if part == "decoder"} == {True}
