import io
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

from distvae.evaluation.scores import Estimate, Scores
from distvae.runs.tracking import EpochRecord, Progress, Saving, Tracker, TrainEpoch

VALID = Scores(
    sentences=2000,
    tokens=20_000,
    re=Estimate(31.25, 0.5),
    kl=Estimate(4.125, 0.0625),
    neg_elbo=Estimate(35.375, 0.5),
    elbo_ppl=Estimate(math.exp(3.5375), 0.25),
    active_units=2,
    mutual_information=Estimate(3.875, 0.03125),
    kl_per_dimension=(4.0, 0.125),
    seed=3,
)
TRAIN = TrainEpoch(
    re=33.5,
    kl=3.75,
    neg_elbo=37.25,
    objective=34.5,
    kl_per_dimension=(3.5, 0.25),
    sentences=40_000,
    skipped=0,
    seconds=16.0,
)


def record(step: int = 40, **values) -> EpochRecord:
    content = {
        "stage": "train",
        "epoch": step // 10,
        "step": step,
        "kl_weight": 0.3125,
        "learning_rate": 0.0625,
        "train": TRAIN,
        "valid": VALID,
        "valid_seconds": 2.5,
        "verdict": "improved",
        "saving": Saving(count=2, stall_seconds=0.25, write_seconds=1.5),
        "start": 1,
    }
    return EpochRecord(**content | values)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(run: Path, name: str) -> list[tuple[int, str]]:
    # What TensorBoard itself shows texts by: the other one does not purge them.
    events = plugin_event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    found = events.Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def rows(run: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


# -- A line an epoch ---------------------------------------------------------------------------------------------------


def test_an_epoch_is_one_line_that_holds_its_numbers():
    line = record().line()
    assert "\n" not in line
    numbers = ["train", "4", "0.312", "0.0625", "33.50", "3.75", "31.25", "4.12", "35.38", "3.88", "2", "2500/s"]
    left = line
    for number in numbers:  # in this order
        assert number in left, number
        left = left.partition(number)[2]


@pytest.mark.parametrize(
    ("verdict", "end"),
    [("improved", "best"), ("wait", "/s"), ("not counted", "/s"), ("decay", "decay"), ("stop", "stop")],
)
def test_the_line_ends_with_what_was_made_of_the_epoch(verdict, end):
    assert record(verdict=verdict).line().endswith(end)


def test_lines_of_a_run_stand_below_each_other():
    first, second = record(), record(stage="pretrain", epoch=100, kl_weight=0.0, learning_rate=0.5)
    assert [record.line().index("train RE") for record in (first, second)] == [first.line().index("train RE")] * 2
    assert [record.line().index("valid RE") for record in (first, second)] == [first.line().index("valid RE")] * 2


def test_throughput():
    assert TRAIN.sentences_per_second == 2500


# -- metrics.jsonl -----------------------------------------------------------------------------------------------------


def test_metrics_are_json_lines_of_all_fields(tmp_path, capsys):
    tracker = Tracker(tmp_path)
    records = [record(10), record(20, verdict="not counted")]
    for each in records:
        tracker.epoch(each)
    tracker.close()
    assert rows(tmp_path) == json.loads(json.dumps([asdict(each) for each in records]))
    first = rows(tmp_path)[0]
    assert (first["step"], first["train"]["objective"], first["valid"]["re"]["mean"]) == (10, 34.5, 31.25)
    assert (first["valid"]["nll"], first["valid"]["kl_per_dimension"]) == (None, [4.0, 0.125])
    assert capsys.readouterr().out.splitlines() == [each.line() for each in records]


def test_metrics_of_a_single_sentence_are_json(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.epoch(record(valid=replace(VALID, sentences=1, re=Estimate(31.25, None))))
    tracker.close()
    assert rows(tmp_path)[0]["valid"]["re"]["mean"] == 31.25


def test_a_tracker_that_goes_on_keeps_the_rows(tmp_path):
    for step in (10, 20):
        tracker = Tracker(tmp_path, step - 10)
        tracker.epoch(record(step))
        tracker.close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]


def test_a_tracker_reopened_at_an_earlier_step_drops_what_came_after(tmp_path):
    tracker = Tracker(tmp_path)
    for step in (10, 20, 30):
        tracker.epoch(record(step, kl_weight=step / 64))
        tracker.sentences("samples", [f"said at {step}"], step)
    tracker.close()
    tracker = Tracker(tmp_path, 20)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    tracker.epoch(record(30, kl_weight=0.5))
    tracker.sentences("samples", ["said again"], 30)
    tracker.close()
    assert [(row["step"], row["kl_weight"]) for row in rows(tmp_path)] == [(10, 10 / 64), (20, 20 / 64), (30, 0.5)]
    assert scalars(tmp_path)["control/kl_weight"] == [(10, 10 / 64), (20, 20 / 64), (30, 0.5)]
    assert [step for step, _ in texts(tmp_path, "samples")] == [10, 20, 30]
    assert "said again" in texts(tmp_path, "samples")[-1][1]


def test_a_row_that_a_crash_cut_short_is_dropped(tmp_path):
    tracker = Tracker(tmp_path)
    for step in (10, 20):
        tracker.epoch(record(step))
    tracker.close()
    content = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(content[:-30], encoding="utf-8")
    tracker = Tracker(tmp_path, 10)
    tracker.epoch(record(20))
    tracker.close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def test_tensorboard_holds_the_curves(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.epoch(record(10))
    tracker.epoch(record(20, kl_weight=0.5, train=replace(TRAIN, re=30.5), valid=replace(VALID, kl=Estimate(2.0, 1.0))))
    tracker.close()
    assert scalars(tmp_path) == {
        "re/train": [(10, 33.5), (20, 30.5)],
        "re/valid": [(10, 31.25), (20, 31.25)],
        "kl/train": [(10, 3.75), (20, 3.75)],
        "kl/valid": [(10, 4.125), (20, 2.0)],
        "neg_elbo/train": [(10, 37.25), (20, 37.25)],
        "neg_elbo/valid": [(10, 35.375), (20, 35.375)],
        "objective/train": [(10, 34.5), (20, 34.5)],
        "control/kl_weight": [(10, 0.3125), (20, 0.5)],
        "control/learning_rate": [(10, 0.0625), (20, 0.0625)],
        "latent/active_units": [(10, 2.0), (20, 2.0)],
        "latent/mutual_information": [(10, 3.875), (20, 3.875)],
        "throughput/sentences_per_second": [(10, 2500.0), (20, 2500.0)],
        "throughput/checkpoint_stall_seconds": [(10, 0.25), (20, 0.25)],
        "latent_kl/00": [(10, 4.0), (20, 4.0)],
        "latent_kl/01": [(10, 0.125), (20, 0.125)],
    }


def test_tensorboard_holds_sentences_as_text(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.sentences("prior samples", ["A man is here.", "", "<unk> and <s>"], 10)
    tracker.close()
    assert texts(tmp_path, "prior samples") == [(10, "- A man is here.\n- \n- &#60;unk&#62; and &#60;s&#62;")]


# -- The progress bar --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_itself_and_its_values_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train 3", 100, shown=True) as progress:
        assert progress.shown
        progress.advance(25, kl=4.125)
        progress._bar.refresh()
    for part in ("train 3", "25/100", "sentences", "kl=4.125"):
        assert part in terminal.getvalue()


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO, True), (Terminal, False)])
def test_progress_is_silent_without_a_terminal_and_when_it_is_told_so(stream, shown, monkeypatch, capsys):
    silent = stream()
    monkeypatch.setattr(sys, "stderr", silent)
    with Progress("train 3", 100, shown) as progress:
        assert not progress.shown
        progress.advance(25, kl=4.125)
        progress.advance(75)
    assert silent.getvalue() == ""
    assert capsys.readouterr().out == ""
