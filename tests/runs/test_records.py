import json

import pytest

from distvae.evaluation.liveness import Latent
from distvae.runs.records import last_latent, read_metrics
from distvae.runs.trackers.jsonl import JsonLines
from distvae.system.errors import UserError
from tests.runs.epochs import TRAIN, record, rows


def test_throughput():
    assert TRAIN.sentences_per_second == 2500


def write(run, *records):
    tracker = JsonLines(run, 0)
    for each in records:
        tracker.epoch(each)


def test_records_come_back(tmp_path):
    assert read_metrics(tmp_path) == []
    write(tmp_path, record(10), record(20))
    assert read_metrics(tmp_path) == [record(10), record(20)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("neg_elbo", 40.0, "neg_elbo of train is 40.0, and re \\+ kl is 37.25"),
        ("kl_per_dimension", [1.0, 1.0], "kl of train is 3.75, and its dimensions add up to 2.0"),
        ("sentences", 0, "sentences"),
    ],
)
def test_a_record_whose_numbers_do_not_agree_is_refused(tmp_path, key, value, message):
    write(tmp_path, record(10))
    row = rows(tmp_path)[0]
    row["train"][key] = value
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"line 1.*{message}"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("steps", [(10, 30), (20, 10), (10, 10)])
def test_records_that_do_not_follow_each_other_are_refused(tmp_path, steps):
    write(tmp_path, *map(record, steps))
    with pytest.raises(UserError, match=f"train epoch {steps[1] // 10} at step {steps[1]} comes after train epoch"):
        read_metrics(tmp_path)


def test_the_last_latent_is_that_of_the_last_record(tmp_path):
    assert last_latent(tmp_path) is None
    write(tmp_path, record(10, latent=Latent("dead", "advice")), record(20, latent=Latent("alive")))
    assert last_latent(tmp_path) == Latent("alive")
    (tmp_path / "metrics.jsonl").write_text("damaged\n", encoding="utf-8")
    assert last_latent(tmp_path) is None
