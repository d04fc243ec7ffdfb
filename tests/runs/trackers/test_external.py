"""A library that fails, hangs or is new to a run. tests/runs/trackers/test_libraries.py has the real ones."""

import json
import math
import threading

import pytest

from distvae.config.schema import Config, TrackingConfig
from distvae.runs import trackers
from distvae.runs.trackers import Trackers, external
from distvae.runs.trackers.libraries import Library
from tests.runs.epochs import VALID, record, rows


class Memory(Library):
    """Keeps what it is told. Fails at the call in ``fails``, and hangs at the one in ``hangs``."""

    fails = hangs = None
    has = 0  # the step of a new one
    free = threading.Event()

    def __init__(self, subject, kept):
        self.run, self.step, self.told = dict(kept) or {"id": f"run {len(MADE)}"}, self.has, []
        MADE.append(self)
        self._tell("open", subject.name, kept)

    def _tell(self, call, *what):
        if call == self.fails:
            raise ConnectionError("no route to host\nand more")
        if call == self.hangs:
            self.free.wait()
        self.told.append((call, *what))

    def log(self, values, step):
        assert all(map(math.isfinite, values.values()))
        self._tell("log", step)

    def warn(self, text, step):
        self._tell("warn", text)

    def texts(self, title, texts, step):
        self._tell("texts", step)

    def flush(self, step):
        self._tell("flush", step)

    def results(self, scores, step):
        assert all(map(math.isfinite, scores.values()))
        self._tell("results", step)

    def close(self, ending):
        self._tell("close", ending)


MADE: list[Memory] = []
CONFIG = Config(tracking=TrackingConfig(trackers=("wandb", "tensorboard", "wandb")))


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    MADE.clear()
    Memory.free.clear()
    for module in (trackers, external):
        monkeypatch.setattr(module, "LIBRARIES", {"wandb": Memory})
    yield
    Memory.free.set()


def train(run, resumed=0, steps=(10, 20), end=Trackers.close):
    found = Trackers(run, resumed, CONFIG)
    for step in steps:
        found.epoch(record(step))
        found.texts("samples", ["a"], step)
        found.flush()
    found.results(VALID)
    end(found)


def test_a_library_is_told_everything_in_order(tmp_path):
    train(tmp_path)
    (library,) = MADE
    each = [[("log", step), ("texts", step), ("flush", step)] for step in (10, 20)]
    assert library.told == [
        ("open", tmp_path.name, {}), *each[0], *each[1], ("results", 20), ("close", "finished")
    ]  # fmt: skip
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": {"id": "run 0"}}


def test_a_run_that_ends_early_says_so(tmp_path):
    train(tmp_path, end=lambda found: found.end("interrupted"))
    assert MADE[0].told[-1] == ("close", "interrupted")


def logged(library):
    return [told[1] for told in library.told if told[0] == "log"]


def test_a_resumed_run_sends_its_records_again_to_a_library_without_them(tmp_path):
    Trackers(tmp_path).epoch(record(10))  # without the library
    train(tmp_path, 10, [20])
    assert logged(MADE[0]) == [10, 20]
    train(tmp_path, 10, [20, 30])
    assert MADE[1].told[0] == ("open", tmp_path.name, {"id": "run 0"})
    assert logged(MADE[1]) == [10, 20, 30]
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]


def test_a_library_is_not_told_again_what_it_has(tmp_path, monkeypatch):
    train(tmp_path)
    monkeypatch.setattr(Memory, "has", 20)
    train(tmp_path, 10, [20, 30])
    assert [told for told in MADE[1].told if told[0] != "open"] == [
        ("log", 30), ("texts", 30), ("flush", 30), ("results", 30), ("close", "finished")
    ]  # fmt: skip


def test_numbers_that_are_not_finite_are_left_out(tmp_path, capsys):
    found = Trackers(tmp_path, 0, CONFIG)
    for tracker in found._external:
        tracker.epoch(record(10, kl_weight=math.nan, learning_rate=math.inf))
        tracker.results({"test/re": math.nan, "test/kl": 1.0}, 10, {})
    found.close()
    assert [told[0] for told in MADE[0].told] == ["open", "log", "results", "close"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("call", ["open", "log", "texts", "flush", "results", "close"])
def test_a_library_that_fails_is_left_out_with_one_warning(tmp_path, capsys, monkeypatch, call):
    monkeypatch.setattr(Memory, "fails", call)
    train(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    expected = f"distvae: WARNING {tmp_path.name}: training continues without wandb: ConnectionError: no route to host;"
    assert capsys.readouterr().err == f"{expected} the next attempt at this run sends what is missing\n"


def test_a_library_that_hangs_is_not_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Memory, "hangs", "log")
    monkeypatch.setattr(external, "PATIENCE", 0.2)
    train(tmp_path)
    assert "training continues without wandb: it has not finished within" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 2


@pytest.mark.parametrize("content", ['{"wandb": {"run": 1}}', '{"wandb": {"id": "run 0"', "[]"])
def test_a_damaged_file_begins_another_run_of_the_library(tmp_path, content):
    train(tmp_path)
    (tmp_path / "trackers.json").write_text(content)
    train(tmp_path, 20, [30])
    assert MADE[1].run == {"id": "run 1"}
    assert logged(MADE[1]) == [10, 20, 30]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": {"id": "run 1"}}
