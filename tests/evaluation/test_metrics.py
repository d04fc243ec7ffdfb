"""The registry of metrics, and that one more entry appears wherever metrics are shown."""

import re
from dataclasses import fields, replace

import pytest

from distvae.config.load import explain
from distvae.evaluation.metrics import METRICS, Metric
from distvae.evaluation.scores import Estimate, Scores
from distvae.reports.comparison import table
from distvae.runs.trackers.console import epoch_line
from distvae.sweeps.account import gather
from distvae.sweeps.columns import columns
from distvae.sweeps.figures import parallel_coordinates, trade_off
from distvae.sweeps.ranking import Outcome, rank
from distvae.sweeps.report import as_dict, write_hparams
from distvae.sweeps.specification import ObjectiveConfig
from distvae.sweeps.summary import summary
from tests.runs.epochs import VALID, record, scalars
from tests.sweep_folders import results_of, small_sweep

# Not a metric, but a number that all scores have: 20,000 in those of ``record``, 200 in those of ``small_sweep``.
TOKENS = Metric("tokens", "TOK", "tokens", "max", name="all tokens", decimals=0, curve="size/tokens")


@pytest.fixture
def tokens(monkeypatch) -> Metric:
    monkeypatch.setitem(METRICS, "tokens", TOKENS)
    return TOKENS


# -- A metric ----------------------------------------------------------------------------------------------------------


def test_every_metric_is_a_score_under_its_key():
    assert all(key == metric.key for key, metric in METRICS.items())
    assert METRICS.keys() <= {field.name for field in fields(Scores)}
    for name in ("title", "curve"):
        found = [getattr(metric, name) for metric in METRICS.values() if getattr(metric, name) is not None]
        assert len(set(found)) == len(found)


def test_every_estimate_is_a_metric():
    """Except for the NLL's excess over −ELBO, which checks that the NLL is right."""
    estimates = {field.name for field in fields(Scores) if "Estimate" in str(field.type)}
    assert estimates - METRICS.keys() == {"nll_excess"}


def test_a_score_is_shown_with_its_error_or_as_a_part():
    kl, units, nll = (METRICS[key] for key in ("kl", "active_units", "nll"))
    assert (kl.value(VALID), kl.short(VALID), kl.text(VALID)) == (4.125, "4.12", "4.12 ± 0.06")
    assert (units.value(VALID), units.short(VALID), units.text(VALID)) == (2, "2 of 2", "2 of 2")
    assert (nll.value(VALID), nll.short(VALID), nll.text(VALID)) == (None, None, None)
    assert kl.text(replace(VALID, kl=Estimate(-0.001, None))) == "0.00 ± ?"
    assert replace(kl, decimals=3).text(VALID) == "4.125 ± 0.062"
    assert (kl.heading, units.heading) == ("KL", "AU, active units")
    assert kl.explanation == "KL of posterior and prior, in nats per sentence"


# -- A further metric --------------------------------------------------------------------------------------------------


def test_the_comparison_of_runs_shows_it(tokens):
    shown = table({"run": results_of(VALID, "test")})
    rows = dict(zip(*(list(column.cells) for column in shown.columns), strict=True))
    assert rows["TOK, all tokens"] == "20000"


def test_an_epoch_shows_it(tokens):
    assert record().scalars()["size/tokens"] == 20_000
    assert "TOK  20000 " in epoch_line(record())


def test_a_metric_without_a_curve_is_not_shown_by_epoch(monkeypatch):
    monkeypatch.setitem(METRICS, "tokens", replace(TOKENS, curve=None))
    assert 20_000 not in record().scalars().values()
    assert "TOK" not in epoch_line(record())


def test_a_sweep_shows_it_of_every_trial(tokens, tmp_path):
    asked = small_sweep(tmp_path / "sweep")
    account = gather(asked.folder)
    best = account.best
    assert [column.text(best) for column in columns(account) if column.title == "TOK"] == ["200"]
    assert "TOK 200, latent alive" in summary(account)
    assert as_dict(account)["trials"][0]["outcome"]["tokens"] == 200
    axes = parallel_coordinates(account, account.scored).data[0].dimensions
    assert [list(axis.values) for axis in axes if axis.label == "TOK"] == [[200] * 5]
    write_hparams(asked.folder, asked, best.trial)
    assert [value for _, value in scalars(asked.folder / "trials" / "0005")["final/tokens"]] == [200]


def test_what_an_older_version_did_not_compute_is_left_out(monkeypatch, tmp_path):
    """Here of a trial; the others have it."""
    monkeypatch.setitem(METRICS, "nll_excess", Metric("nll_excess", "GAP", "NLL − (−ELBO), in nats", None))
    asked = small_sweep(tmp_path / "sweep")
    assert "GAP" in summary(gather(asked.folder))
    path = asked.folder / "trials" / "0005" / "metrics.jsonl"
    path.write_text(re.sub(r'"nll_excess": {[^}]*}', '"nll_excess": null', path.read_text()), encoding="utf-8")
    account = gather(asked.folder)
    (column,) = (column for column in columns(account) if column.title == "GAP")
    assert [column.text(entry) is None for entry in account.scored] == [True, False, False, False, False]
    assert "GAP" not in summary(account)
    axes = parallel_coordinates(account, account.scored).data[0].dimensions
    assert "GAP" not in [axis.label for axis in axes]
    trade_off(account, account.scored)
    write_hparams(asked.folder, asked, account.best.trial)
    assert "final/nll_excess" not in scalars(asked.folder / "trials" / "0005")


@pytest.mark.parametrize(("better", "order"), [("max", [1, 0]), ("min", [0, 1])])
def test_a_sweep_can_optimize_it_in_its_direction(monkeypatch, better, order):
    monkeypatch.setitem(METRICS, "tokens", replace(TOKENS, better=better, in_sweeps=False))
    objective = ObjectiveConfig(metric="tokens", kl_tolerance=None)
    assert (objective.mode, objective.titles) == (better, ["TOK"])
    assert METRICS["tokens"] in objective.shown
    assert METRICS["tokens"] not in ObjectiveConfig().shown
    outcomes = {number: Outcome(1, 1.0, None, replace(VALID, tokens=4000 + number)) for number in range(2)}
    assert rank(objective, outcomes) == order


@pytest.mark.parametrize("key", ["loss", "tokens"])
def test_a_sweep_refuses_what_is_no_metric_or_has_no_direction(monkeypatch, key):
    monkeypatch.setitem(METRICS, "tokens", replace(TOKENS, better=None))
    with pytest.raises(ValueError, match="metric") as caught:
        ObjectiveConfig(metric=key)
    assert explain(caught.value) == (
        f"metric = {key!r}: input should be 're', 'kl', 'neg_elbo', 'nll', 'ppl', 'bpc', 'elbo_ppl', 'active_units' or"
        " 'mutual_information'"
    )
