import json
from dataclasses import asdict, replace

from distvae.evaluation.scores import Estimate
from distvae.runs.trackers.jsonl import JsonLines
from tests.runs.epochs import VALID, record, rows


def test_metrics_are_json_lines_of_all_fields(tmp_path):
    tracker = JsonLines(tmp_path, 0)
    records = [record(10), record(20, verdict="not counted")]
    for each in records:
        tracker.epoch(each)
    tracker.close()
    assert rows(tmp_path) == json.loads(json.dumps([asdict(each) for each in records]))
    first = rows(tmp_path)[0]
    assert (first["step"], first["train"]["objective"], first["valid"]["re"]["mean"]) == (10, 34.5, 31.25)
    assert (first["valid"]["nll"], first["valid"]["kl_per_dimension"]) == (None, [4.0, 0.125])


def test_metrics_of_a_single_sentence_are_json(tmp_path):
    tracker = JsonLines(tmp_path, 0)
    tracker.epoch(record(valid=replace(VALID, sentences=1, re=Estimate(31.25, None))))
    tracker.close()
    assert rows(tmp_path)[0]["valid"]["re"]["mean"] == 31.25


def test_a_tracker_that_goes_on_keeps_the_rows(tmp_path):
    for step in (10, 20):
        tracker = JsonLines(tmp_path, step - 10)
        tracker.epoch(record(step))
        tracker.close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]


def test_a_row_that_a_crash_cut_short_is_dropped(tmp_path):
    tracker = JsonLines(tmp_path, 0)
    for step in (10, 20):
        tracker.epoch(record(step))
    tracker.close()
    content = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(content[:-30], encoding="utf-8")
    tracker = JsonLines(tmp_path, 10)
    tracker.epoch(record(20))
    tracker.close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
