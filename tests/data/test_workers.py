import os
import signal
from dataclasses import replace

import pytest

from distvae.config.schema import DataConfig
from distvae.data import corpus, sharding, workplace
from distvae.data.workers import KilledError, map_numbers
from tests.data.corpora import write_folder


def squared(row):
    if row["number"] == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": row["number"] ** 2}


@pytest.mark.parametrize("processes", [1, 3])
def test_each_number_is_taken_once_and_in_order(processes):
    assert map_numbers([3, 1, 4, 2], squared, processes, "Squaring")["square"][:] == [9, 1, 16, 4]


def test_a_killed_process_is_reported():
    with pytest.raises(KilledError, match=r"data.workers: one of 2 processes .* was killed.*data.workers=1"):
        map_numbers(range(20), squared, 2, "Squaring")


def test_what_was_finished_before_a_process_was_killed_is_kept(tmp_path, monkeypatch):
    folder = write_folder(
        tmp_path / "text", train="".join(f"w{i % 9} x\n" for i in range(300)), valid="x\n", test="x\n"
    )
    real, taken = sharding._encode, []

    def encode(rows, number, **given):
        if number == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(rows, number, **given)

    monkeypatch.setattr(sharding, "_encode", encode)
    data = DataConfig(path=folder, cache=str(tmp_path / "cache"), shard_size=8, workers=2, min_count=1)
    with pytest.raises(KilledError):
        corpus.prepare(data, progress=False)
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.endswith(f"-{workplace.WORK}")

    def watched(rows, number, **given):
        taken.append(number)
        return real(rows, number, **given)

    monkeypatch.setattr(sharding, "_encode", watched)
    found = corpus.prepare(replace(data, workers=1), progress=False)
    assert len(corpus.load(found).train) == 300
    assert 30 in taken
    assert 0 not in taken
