from dataclasses import replace

import pytest

from distvae.evaluation.liveness import Latent
from distvae.runs.trackers.console import Console, epoch_line
from tests.runs.epochs import TRAIN, record


def test_an_epoch_is_one_line_that_holds_its_numbers():
    line = epoch_line(record())
    assert "\n" not in line
    numbers = ["train", "4", "0.312", "0.0625", "33.50", "3.75", "31.25", "4.12", "35.38", "2", "3.88", "2500/s"]
    left = line
    for number in numbers:  # in this order
        assert number in left, number
        left = left.partition(number)[2]


@pytest.mark.parametrize(
    ("verdict", "end"),
    [("improved", "best"), ("wait", "/s"), ("not counted", "/s"), ("decay", "decay"), ("stop", "stop")],
)
def test_the_line_ends_with_what_was_made_of_the_epoch(verdict, end):
    assert epoch_line(record(verdict=verdict)).endswith(end)


def test_the_numbers_of_lines_are_below_each_other():
    first, second = map(epoch_line, (record(), record(stage="pretrain", epoch=100, kl_weight=0.0, learning_rate=0.5)))
    for title in ("train RE", "valid RE"):
        assert first.index(title) == second.index(title)


def test_the_line_marks_what_was_skipped_and_a_latent_that_is_not_alive():
    line = epoch_line(record(train=replace(TRAIN, skipped=7), latent=Latent("hollow", "advice")))
    assert line.endswith("/s  hollow  7 sentences skipped, not finite  best")
    assert epoch_line(record(latent=Latent("alive"))).endswith("/s  best")


def test_the_line_counts_encoder_steps():
    line = epoch_line(record(encoder_steps=1234, latent=Latent("dead", "advice")))
    assert line.endswith("/s  dead  aggressive, 1,234 encoder steps  best")
    assert record(encoder_steps=1234).scalars()["control/encoder_steps"] == 1234


def test_the_line_has_the_epochs_of_the_runs_config(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("pretrain: {max_epochs: 3}\ntrain: {max_epochs: 20}\n", encoding="utf-8")
    console = Console(tmp_path, 0)
    console.epoch(record())
    console.epoch(record(stage="pretrain"))
    train, pretrain = capsys.readouterr().out.splitlines()
    assert train.startswith("train      4/20  γ ")
    assert pretrain.startswith("pretrain   4/3  γ ")


def test_epochs_and_warnings_are_printed_at_once(tmp_path, capsys):
    console = Console(tmp_path / "run", 0)
    console.epoch(record())
    assert capsys.readouterr().out == epoch_line(record()) + "\n"
    console.warn("the latent is dead", 40)
    assert capsys.readouterr().out == "WARNING run: the latent is dead\n"
