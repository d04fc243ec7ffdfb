import math
from dataclasses import replace

import numpy as np
import pytest

from distvae.reports.field import language_model, rank
from distvae.reports.methods import gather
from distvae.system.errors import UserError
from tests import paper_folders
from tests.paper_folders import FIELD, N, sentence_scores, write_run, write_table

ROWS = ("ae", "kla", "lstm_lm", "cyclical", "beta", "mdr")


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """The rows of one seed, by the names of their methods."""
    return {row.method.name: row for row in rank(gather(write_table(tmp_path_factory.mktemp("field"), rows=ROWS)))}


def test_methods_are_ranked_by_nll_and_those_without_one_are_last(ranked):
    nll = [row.method.score("nll").mean for row in list(ranked.values())[:-1]]
    assert nll == sorted(nll)
    assert list(ranked) == ["cyclical KLA", "KLA", "LSTM-LM", "MDR", "β = 0.4", "AE"]
    assert ranked["AE"].rank is None


def test_a_rank_counts_the_methods_that_are_certainly_better(ranked):
    """By pairs of sentences: 1 for the best, and the same for methods between which no difference is certain."""
    scores = {"cyclical KLA": "cyclical", "KLA": "kla", "LSTM-LM": "lstm_lm", "MDR": "mdr", "β = 0.4": "beta"}
    for name, key in scores.items():
        paired = [sentence_scores(key).nll - sentence_scores(other).nll for other in scores.values() if other != key]
        better = [d for d in paired if d.mean() > 2 * d.std(ddof=1) / math.sqrt(N)]
        assert ranked[name].rank == 1 + len(better)
    assert ranked["MDR"].rank == ranked["LSTM-LM"].rank


def test_the_gain_is_the_paired_difference_to_the_language_model(ranked):
    for name, row in (("cyclical KLA", "cyclical"), ("MDR", "mdr"), ("β = 0.4", "beta")):
        paired = sentence_scores("lstm_lm").nll - sentence_scores(row).nll
        assert ranked[name].gain.mean == pytest.approx(paired.mean())
        assert ranked[name].gain.standard_error == pytest.approx(paired.std(ddof=1) / math.sqrt(N))
    assert [ranked[name].pays for name in ("cyclical KLA", "MDR", "β = 0.4")] == ["yes", "too close to tell", "no"]
    assert ranked["LSTM-LM"].gain is None
    assert ranked["AE"].gain is None


def test_a_gain_over_seeds_adds_their_errors(tmp_path):
    rows = rank(gather(write_table(tmp_path, seeds=3, rows=("lstm_lm", "cyclical"))))
    each = {row: [sentence_scores(row, s, 0.1 * s).nll for s in range(3)] for row in ("lstm_lm", "cyclical")}
    paired = np.mean(each["lstm_lm"], axis=0) - np.mean(each["cyclical"], axis=0)
    seeds = sum(np.var([value.mean() for value in values], ddof=1) / 3 for values in each.values())
    assert rows[0].gain.mean == pytest.approx(paired.mean())
    assert rows[0].gain.standard_error == pytest.approx(math.sqrt(paired.var(ddof=1) / N + seeds))


def test_dead_hollow_and_living_latents_are_marked(ranked):
    assert {name: row.state for name, row in ranked.items()} == {
        "cyclical KLA": "alive", "KLA": "dead", "LSTM-LM": None, "MDR": "dead", "β = 0.4": "hollow", "AE": "alive",
    }  # fmt: skip
    assert [ranked[name].alive for name in ("cyclical KLA", "β = 0.4", "LSTM-LM")] == [True, False, None]


def test_a_latent_below_half_of_its_target_is_weak_and_seeds_may_differ(tmp_path, monkeypatch):
    write_run(tmp_path / "a", "mdr")
    monkeypatch.setitem(FIELD, "mdr", (36.2, 1.9, 36.0, 1.5, 3))
    for seed in (1, 2):
        write_run(tmp_path / str(seed), "mdr", seed)
    (row,) = rank(gather([tmp_path / name for name in ("a", "1", "2")]))
    assert row.state == "2 weak, 1 dead"
    assert row.alive is False


def test_without_a_language_model_there_is_no_gain(tmp_path):
    runs = write_table(tmp_path, rows=("kla", "cyclical"))
    write_run(tmp_path / "lm", "lstm_lm", finished=False)
    methods = gather([*runs, tmp_path / "lm"])
    assert language_model(methods) is None
    rows = rank(methods)
    assert [(row.gain, row.pays) for row in rows] == [(None, None)] * 3
    assert rows[-1].rank is None  # it has not finished


def test_gains_are_over_the_best_of_several_language_models(tmp_path):
    write_run(tmp_path / "worse", "lstm_lm", shift=0.5, model=paper_folders.SIZES | {"latent_size": 0, "dropout": 0.1})
    for row in ("lstm_lm", "kla"):
        write_run(tmp_path / row, row)
    methods = gather([tmp_path / name for name in ("worse", "lstm_lm", "kla")])
    assert [method.name for method in methods][:2] == ["LSTM-LM (model.dropout=0.1)", "LSTM-LM (model.dropout=0.5)"]
    assert language_model(methods).name == "LSTM-LM (model.dropout=0.5)"


def test_hours_have_the_pretraining_that_a_run_took_over(tmp_path):
    write_run(tmp_path / "ae", "ae")
    write_run(tmp_path / "pt_kla", "pt_kla")  # from runs/ae, and moved together with it
    both = {row.method.name: row.hours for row in rank(gather([tmp_path / "ae", tmp_path / "pt_kla"]))}
    assert both["PT + KLA"] == pytest.approx(2 * both["AE"])
    (alone,) = rank(gather([tmp_path / "pt_kla"]))
    assert alone.hours is None


def test_runs_on_different_data_are_refused_by_name(tmp_path):
    write_run(tmp_path / "one", "cyclical")
    write_run(tmp_path / "two", "mdr", corpus="0" * 16)
    with pytest.raises(UserError, match=f"{tmp_path}/two was scored on other sentences or words than {tmp_path}/one"):
        gather([tmp_path / "one", tmp_path / "two"])


def test_no_state_is_given_where_there_was_nothing_to_judge(ranked):
    row = ranked["KLA"]
    assert replace(row, states=()).state is None
    assert replace(row, states=()).alive is None
