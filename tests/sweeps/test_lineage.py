import json
import re

import pytest

from distvae.runs.records import read_metrics
from distvae.sweeps.lineage import Generation, generations, history, save_lineage
from distvae.system.errors import UserError
from tests.sweep_folders import pbt_sweep, scores, write_run


def test_a_trials_generations_and_their_history_are_found_where_the_sweep_lies_now(tmp_path):
    pbt_sweep(tmp_path / "sweep")
    folder = (tmp_path / "sweep").rename(tmp_path / "moved")
    first, later = generations(folder, 1)
    assert first == Generation(folder / "trials" / "0001")
    assert later == Generation(folder / "trials" / "0001.1", folder / "trials" / "0000", 40, {"kl.target_rate": 4.8})
    rows = history(folder, later.run)
    assert [row.epoch for row in rows] == list(range(1, 9))
    own, parents = read_metrics(later.run), read_metrics(folder / "trials" / "0000")
    assert rows == parents[:4] + own
    assert history(folder, first.run) == read_metrics(first.run)


def test_history_goes_back_over_several_generations(tmp_path):
    pbt_sweep(tmp_path / "sweep")
    folder = tmp_path / "sweep"
    write_run(folder / "trials" / "0000.1", scores(16, 5, 4, 4), epochs=9, first=7)
    save_lineage(Generation(folder / "trials" / "0000.1", folder / "trials" / "0001.1", 60, {"kl.target_rate": 5.0}))
    rows = history(folder, folder / "trials" / "0000.1")
    assert [row.epoch for row in rows] == list(range(1, 10))
    assert rows[:6] == history(folder, folder / "trials" / "0001.1")[:6]


def test_a_generation_that_has_not_begun_and_what_else_lies_there_do_not_count(tmp_path):
    pbt_sweep(tmp_path / "sweep")
    trials = tmp_path / "sweep" / "trials"
    for name in ("0001.2", "0001.3", "0001.old"):
        (trials / name).mkdir()
    assert [generation.run.name for generation in generations(tmp_path / "sweep", 1)] == ["0001", "0001.1"]
    assert generations(tmp_path / "sweep", 7) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"parent": "../0000", "step": 40, "values": {}}'])
def test_a_damaged_lineage_is_one_line_and_no_generation_is_left_out(tmp_path, text):
    pbt_sweep(tmp_path / "sweep")
    path = tmp_path / "sweep" / "trials" / "0001.1" / "lineage.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{path}: ")):
        generations(tmp_path / "sweep", 1)


@pytest.mark.parametrize("parent", ["0001.1", "0001.2", "0007"])
def test_a_lineage_that_leads_back_or_nowhere_is_one_line(tmp_path, parent):
    pbt_sweep(tmp_path / "sweep")
    trials = tmp_path / "sweep" / "trials"
    save_lineage(Generation(trials / "0001.1", trials / parent, 40, {}))
    save_lineage(Generation(trials / "0001.2", trials / "0001.1", 60, {}))
    with pytest.raises(UserError, match=r"lineage\.json: is not the lineage of a run"):
        history(tmp_path / "sweep", trials / "0001.2")


def test_generations_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        save_lineage(Generation(tmp_path / "trials" / f"0002.{number}", tmp_path / "trials" / "0001", number, {}))
    assert [generation.step for generation in generations(tmp_path, 2)] == [1, 9, 10]
    told = json.loads((tmp_path / "trials" / "0002.9" / "lineage.json").read_text())
    assert told == {"parent": "0001", "step": 9, "values": {}}
