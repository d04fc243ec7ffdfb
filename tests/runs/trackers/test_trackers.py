"""All trackers of a run together. Each has its own tests beside this file."""

import pytest

from distvae.evaluation.liveness import Latent
from distvae.runs import trackers
from distvae.runs.trackers import TRACKERS, Trackers
from distvae.runs.trackers.tracker import Tracker
from tests.runs.epochs import record, rows, scalars, texts


def test_a_tracker_reopened_at_an_earlier_step_drops_what_came_after(tmp_path):
    all_trackers = Trackers(tmp_path)
    for step in (10, 20, 30):
        all_trackers.epoch(record(step, kl_weight=step / 64))
        all_trackers.texts("samples", [f"said at {step}"], step)
    all_trackers.close()
    all_trackers = Trackers(tmp_path, 20)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    all_trackers.epoch(record(30, kl_weight=0.5))
    all_trackers.texts("samples", ["said again"], 30)
    all_trackers.close()
    assert [(row["step"], row["kl_weight"]) for row in rows(tmp_path)] == [(10, 10 / 64), (20, 20 / 64), (30, 0.5)]
    assert scalars(tmp_path)["control/kl_weight"] == [(10, 10 / 64), (20, 20 / 64), (30, 0.5)]
    assert [step for step, _ in texts(tmp_path, "samples")] == [10, 20, 30]
    assert "said again" in texts(tmp_path, "samples")[-1][1]


class Memory(Tracker):
    """Keeps what it is told."""

    def __init__(self, run, step, resumed):
        self.told = [("open", run, step, resumed)]
        MADE.append(self)

    def epoch(self, record):
        self.told.append(("epoch", record))

    def warn(self, text, step):
        self.told.append(("warn", text, step))

    def point(self, values, step):
        self.told.append(("point", values, step))

    def texts(self, title, texts, step):
        self.told.append(("texts", title, texts, step))

    def flush(self):
        self.told.append(("flush",))

    def close(self):
        self.told.append(("close",))


MADE: list[Memory] = []


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Return the tracker that is added to a run in ``tmp_path``."""
    monkeypatch.setattr(trackers, "TRACKERS", (*TRACKERS, Memory))

    def added() -> Memory:
        return MADE[-1]

    return added


def test_a_tracker_in_the_registry_is_told_everything(tmp_path, memory):
    found = Trackers(tmp_path, 7, resumed=9)
    found.point({"step/re": 1.0}, 9)
    found.epoch(record(10))
    found.texts("samples", ["a", "b"], 10)
    found.flush()
    found.close()
    assert memory().told == [
        ("open", tmp_path, 7, 9), ("point", {"step/re": 1.0}, 9),
        ("epoch", record(10)), ("texts", "samples", ["a", "b"], 10), ("flush",), ("close",),
    ]  # fmt: skip


def test_an_epoch_is_in_the_records_before_any_other_tracker_sees_it(tmp_path, monkeypatch):
    class Reader(Memory):
        def epoch(self, record):
            self.told.append(rows(tmp_path)[-1]["step"])

    monkeypatch.setattr(trackers, "TRACKERS", (*TRACKERS, Reader))
    Trackers(tmp_path).epoch(record(10))
    assert MADE[-1].told[1:] == [10]


def dead(step, state="dead"):
    return record(step, latent=Latent(state, None if state == "alive" else "Try this"))


def test_a_latent_that_stays_dead_is_warned_of_once_also_after_a_resume(tmp_path, memory):
    found = Trackers(tmp_path)
    assert [found.epoch(dead(10)), found.epoch(dead(20))] == [True, False]  # whether its state has changed
    found.close()
    found = Trackers(tmp_path, 20)
    assert [found.epoch(dead(30)), found.epoch(dead(40)), found.epoch(dead(50, "alive"))] == [False, False, True]
    found.close()
    warnings = [told for told in memory().told if told[0] == "warn"]
    assert warnings == [("warn", "for 3 epochs of train the latent has been dead: Try this", 30)]
    assert [step for step, _ in texts(tmp_path, "warnings")] == [30]
