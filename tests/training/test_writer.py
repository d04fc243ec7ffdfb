"""Writing a run's folder without training. ``python -m tests.faults`` kills trainings while they write."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distvae.config.schema import Config, ModelConfig
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.liveness import Latent
from distvae.evaluation.scores import Scores, SentenceScores
from distvae.model.draws import generator
from distvae.model.vae import initialise, model_of
from distvae.runs import attempts, trackers
from distvae.runs.checkpoints import Checkpoint, RunState, Weights, list_checkpoints, load_checkpoint, load_export
from distvae.runs.records import Saving
from distvae.runs.results import load_results, load_sentence_scores
from distvae.runs.status import read_status
from distvae.runs.trackers.tracker import Tracker
from distvae.system.errors import PeerError, UserError
from distvae.system.signals import InterruptedRun
from distvae.training.writer import NoWriter, RunWriter
from tests.runs.epochs import record, rows, texts
from tests.runs.scored import COLLAPSED

CONFIG = Config(run="runs/a", model=ModelConfig(embedding_size=3, hidden_size=4, latent_size=2))
VOCABULARY = Vocabulary.closed(["a", "dog"])


def weights(seed: int = 1) -> Weights:
    model = model_of(CONFIG, len(VOCABULARY), VOCABULARY.pad, VOCABULARY.unknown)
    initialise(model, CONFIG.model, generator("cpu", seed))
    return model.state_dict()


def checkpoint(step: int, batches: int = 0, stage: str = "train") -> Checkpoint:
    state = RunState(
        stage=stage, epoch=1, batches=batches, seconds=0.5, step=step, converged=False, plateau={}, policy={},
        best=None, ended=[], data="0123",
    )  # fmt: skip
    sums = {"sums": torch.zeros(1, 2, dtype=torch.float64)}
    return Checkpoint(weights(1), weights(2), {}, sums, state, CONFIG, world_size=1)


@pytest.fixture
def writer(tmp_path):
    """Return the writer of a new attempt at a run in ``tmp_path``."""
    made = []

    def new() -> RunWriter:
        for former in made:
            former.release()
        made.append(RunWriter(tmp_path, CONFIG, attempts.claim(tmp_path)))
        return made[-1]

    yield new
    for each in made:
        each.release()


def no_samples() -> dict[str, list[str]]:
    return {}


# -- Records -----------------------------------------------------------------------------------------------------------


def test_an_epoch_is_recorded_with_its_samples(tmp_path, writer):
    written = writer()
    written.begin(None, VOCABULARY)
    written.record(record(10), lambda: {"samples": ["a dog"]})
    assert [row["step"] for row in rows(tmp_path)] == [10]
    assert texts(tmp_path, "samples") == [(10, "- a dog")]
    assert not written.failed


def test_all_is_flushed_when_an_epoch_has_been_recorded(writer, monkeypatch):
    """A checkpoint that is written afterwards resumes behind the records."""
    told = []

    class Memory(Tracker):
        def epoch(self, record):
            told.append("epoch")

        def texts(self, title, texts, step):
            told.append("texts")

        def flush(self):
            told.append("flush")

    monkeypatch.setattr(trackers, "TRACKERS", (*trackers.TRACKERS, Memory))
    written = writer()
    written.begin(None, VOCABULARY)
    written.record(record(10), lambda: {"samples": ["a"], "interpolation": ["b"]})
    assert told == ["epoch", "texts", "texts", "flush"]


def test_the_status_follows_the_latent(tmp_path, writer):
    written = writer()
    written.begin(None, VOCABULARY)
    written.record(record(10, latent=Latent("dead", "advice")), no_samples)
    status = read_status(tmp_path)
    assert (status.state, status.start, status.latent) == ("running", 1, Latent("dead", "advice"))
    (tmp_path / "status.json").unlink()
    written.record(record(20, latent=Latent("dead", "other advice")), no_samples)
    assert not (tmp_path / "status.json").exists()
    written.record(record(30, latent=Latent("alive")), no_samples)
    assert read_status(tmp_path).latent == Latent("alive")


# -- Resuming and saving -----------------------------------------------------------------------------------------------


def test_a_resumed_attempt_keeps_what_was_recorded_up_to_its_checkpoint(tmp_path, writer):
    first = writer()
    first.begin(None, VOCABULARY)
    for step in (10, 20, 30):
        first.record(record(step), no_samples)
    second = writer()
    second.begin(checkpoint(step=23, batches=3), VOCABULARY)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    assert attempts.read_attempts(tmp_path)[-1].recorded_step == 20
    (saved,) = list_checkpoints(tmp_path)  # its own copy of what it resumes from
    assert load_checkpoint(saved).state.step == 23
    best = load_export(tmp_path).weights
    assert all(torch.equal(best[name], value) for name, value in weights(2).items())


def test_a_pretraining_that_resumes_exports_nothing(tmp_path, writer):
    writer().begin(checkpoint(step=3, stage="pretrain"), VOCABULARY)
    assert not (tmp_path / "best").exists()


def test_what_training_exported_after_the_checkpoint_is_no_part_of_a_run_that_resumes(tmp_path, writer):
    first = writer()
    first.begin(None, VOCABULARY)
    first.export("pretrained", weights(1), 5)
    first.export("best", weights(1), 9)
    writer().begin(replace(checkpoint(7, stage="train"), best_weights=None), VOCABULARY)
    assert (tmp_path / "pretrained").exists()
    assert not (tmp_path / "best").exists()
    writer().begin(None, VOCABULARY)
    assert not (tmp_path / "pretrained").exists()


def test_an_attempt_whose_folder_is_gone_makes_none(tmp_path, writer):
    written = writer()
    written.begin(None, VOCABULARY)
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    written.save(checkpoint(1), time.monotonic())
    with pytest.raises(UserError, match="its folder is gone"):
        written.wait()
    written.export("best", weights(1), 1)
    assert not tmp_path.exists()
    moved.rename(tmp_path)


def test_an_interrupted_attempt_leaves_no_thread(tmp_path, writer):
    before = {*threading.enumerate()}
    written = writer()
    written.begin(None, VOCABULARY)
    written.record(record(10), no_samples)
    written.save(checkpoint(1), time.monotonic())
    written.wait()
    written.fail(InterruptedRun("SIGTERM"))
    written.release()
    assert {*threading.enumerate()} <= before


def test_saving_is_what_checkpoints_have_cost_since_the_last_time(writer):
    written = writer()
    written.begin(None, VOCABULARY)
    assert written.saving() == Saving(0, 0.0, 0.0)
    for step in (1, 2):
        written.save(checkpoint(step), time.monotonic() - 10)
    written.wait()
    found = written.saving()
    assert found.count == 2
    assert 20 <= found.stall_seconds < 60
    assert 0 < found.write_seconds < 60
    assert written.saving() == Saving(0, 0.0, 0.0)


# -- The end -----------------------------------------------------------------------------------------------------------


def test_the_end_writes_results_scores_and_status(tmp_path, writer):
    each = SentenceScores(*(np.array(values) for values in ([3.0, 5.0], [9.0, 10.0], [1.0, 2.0], [0.5, 0.25])))
    scores = Scores.of(
        each, active_units=1, kl_per_dimension=(1.5, 0.0), seed=0, importance_samples=0, effective_samples=None,
        nll_excess=None,
    )  # fmt: skip
    results = replace(COLLAPSED, scores=scores, start=1, latent=Latent("alive"))
    written = writer()
    written.begin(None, VOCABULARY)
    written.conclude(results, each)
    assert load_results(tmp_path) == results
    assert np.array_equal(load_sentence_scores(tmp_path, results).re, each.re)
    status = read_status(tmp_path)
    assert (status.state, status.start, status.latent) == ("finished", 1, Latent("alive"))


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("no luck"), "failed", "no luck"),
        (MemoryError(), "failed", None),
        (InterruptedRun("interrupted at step 5"), "interrupted", "interrupted at step 5"),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
def test_an_early_end_is_in_the_status_with_its_reason_and_the_last_latent(tmp_path, writer, error, state, reason):
    written = writer()
    written.begin(None, VOCABULARY)
    written.record(record(10, latent=Latent("weak", "advice")), no_samples)
    written.fail(error)
    status = read_status(tmp_path)
    assert (status.state, status.reason, status.latent) == (state, reason, Latent("weak", "advice"))


# -- Failures ----------------------------------------------------------------------------------------------------------


def test_a_failed_write_is_kept_until_it_is_raised(tmp_path, writer):
    written = writer()
    written.begin(None, VOCABULARY)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    written.record(record(10), no_samples)
    written.save(checkpoint(1), time.monotonic())  # behind a record that is missing
    written.export("best", checkpoint(1).weights, 1)
    written.wait()
    assert not [*(tmp_path / "checkpoints").glob("*")] + [*tmp_path.glob("best")]
    written.not_finite({"step": 1})  # says why the run ends
    assert json.loads((tmp_path / "not_finite.json").read_text()) == {"step": 1}
    assert written.failed
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written: Is a directory"):
        written.raise_failure()


def test_a_failed_checkpoint_is_a_failure(tmp_path, writer):
    written = writer()
    written.begin(None, VOCABULARY)
    (tmp_path / "checkpoints").write_text("in the way")
    written.save(checkpoint(1), time.monotonic())
    with pytest.raises(UserError, match="checkpoints"):
        written.wait()
    assert written.failed


def test_a_superseded_attempt_writes_no_more(tmp_path, writer):
    written = writer()
    written.begin(None, VOCABULARY)
    written.export("best", weights(1), 1)
    (tmp_path / "starts" / "0002.json").write_text("")  # of a later attempt
    written.export("best", weights(2), 2)
    assert (written.overtaken, written.failed) == (True, True)
    written.fail(UserError("no luck"))
    assert not (tmp_path / "status.json").exists()
    kept = load_export(tmp_path).weights
    assert all(torch.equal(kept[name], value) for name, value in weights(1).items())
    with pytest.raises(UserError, match="attempt 2"):
        written.raise_failure()


# -- The other ranks ---------------------------------------------------------------------------------------------------


def test_both_writers_have_the_same_methods():
    own = {name for name in vars(NoWriter) if not name.startswith("_")}
    assert {name for name in vars(RunWriter) if not name.startswith("_")} == own


def test_the_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = NoWriter()
    written.begin(None, VOCABULARY)
    written.save(checkpoint(1), time.monotonic())
    written.record(record(10), no_samples)
    written.export("best", weights(), 1)
    written.not_finite({})
    written.conclude(COLLAPSED, SentenceScores(*[np.zeros(1)] * 4))
    written.fail(UserError("no luck"))
    written.wait()
    written.release()
    assert (written.overtaken, written.failed, written.saving()) == (False, False, Saving(0, 0.0, 0.0))
    assert list(Path().iterdir()) == []
    with pytest.raises(PeerError):
        written.raise_failure()
