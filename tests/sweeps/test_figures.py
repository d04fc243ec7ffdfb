"""Single figures of a sweep report."""

import pytest

from distvae.sweeps.account import gather
from distvae.sweeps.figures import BEST, MEETS, MISSES, by_epoch, by_hyperparameter, parallel_coordinates, trade_off
from distvae.sweeps.labels import format_value
from distvae.sweeps.progress import Trial
from distvae.sweeps.ranking import front
from distvae.sweeps.report import write_report
from distvae.sweeps.summary import summary
from tests.sweep_folders import SCORES, large_sweep, scores, small_sweep, sweep_of, write_run, write_sweep
from tests.sweeps.pages import cells, page


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished sweep. Tests leave it as it is."""
    return gather(small_sweep(tmp_path_factory.mktemp("sweeps") / "small").folder)


def test_trials_are_drawn_by_whether_they_meet_the_constraints(small):
    figure = by_hyperparameter(small, small.scored, ["kl.target_rate"])
    kl = {trace.name: sorted(trace.y) for trace in figure.data if trace.yaxis == "y2" and trace.name != "λ"}
    assert kl == {MEETS: [1.9, 2.1, 4.1], MISSES: [0.02, 3.0]}


def test_without_constraints_all_trials_are_alike(tmp_path):
    asked = sweep_of(tmp_path / "run", objective={"kl_tolerance": None, "require_alive": False})
    write_run(asked.folder / "trials" / "0000", scores(20, 0, 0, 0), epochs=1)
    write_sweep(asked, [Trial(0, {"kl.target_rate": 2, "kl.multiplier": 0.1}, "finished")])
    account = gather(asked.folder)
    assert {trace.name for trace in by_hyperparameter(account, account.scored, ["kl.multiplier"]).data} == {
        "λ",
        "trial",
    }


def test_a_point_tells_what_its_trial_scored(small):
    figure = trade_off(small, small.scored)
    texts = {text for trace in figure.data if trace.text for text in trace.text}
    assert (
        "trial 5, finished<br>λ kl.target_rate = 4<br>χ kl.multiplier = 0.3<br>NLL 17.90, KL 4.10, −ELBO 18.82,"
        " AU 4 of 4, MI 3.70<br>λ 4, γ 0.6<br>latent alive"
    ) in texts
    assert len(texts) == len(SCORES)


def test_what_neg_elbo_would_choose_is_drawn_against_the_nll(small):
    figure = trade_off(small, small.scored)
    axes = [(figure.layout[f"xaxis{n}"].title.text, figure.layout[f"yaxis{n}"].title.text) for n in ("", 2, 3)]
    assert axes == [("NLL", "−ELBO"), ("MI", "NLL"), ("AU", "NLL")]
    (best,) = (trace for trace in figure.data if trace.name == "best" and trace.xaxis == "x")
    assert (best.x, best.y) == ((17.9,), (18.825,))


def test_the_curve_of_the_best_trial_is_on_top(small):
    figure = by_epoch(small, small.scored)
    assert [trace.name for trace in figure.data[-2:]] == ["best, trial 5"] * 2
    assert figure.data[-1].line.color == BEST
    assert [trace.x for trace in figure.data] == [tuple(range(1, 9))] * 10


def test_a_key_that_a_trial_does_not_have_is_no_number_in_a_picture(tmp_path):
    asked = large_sweep(tmp_path / "large")
    account = gather(asked.folder)
    axis = parallel_coordinates(account, account.scored).data[0].dimensions[2]
    assert (axis.label, axis.ticktext[0]) == ("χ", "–")
    assert list(axis["values"]).count(axis.tickvals[0]) > 5


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer.clip_norm", [0.1]),
        ("optimizer.clip_norm", [1, 1000, 10]),
        ("optimizer.clip_norm", [None, 5.0]),
        ("optimizer.weight_decay", [0.0, 1e-6, 0.5]),
        ("data.distinct", [True, False]),
        ("data.path", ["a.txt", "<b>&amp;</b>"]),
        ("data.seed", list(range(12))),
    ],
)
def test_every_kind_of_values_can_be_drawn(tmp_path, key, values):
    asked = sweep_of(
        tmp_path / "run",
        space={key: {"grid": values}},
        set={"optimizer.name": "adamw"} | ({} if key == "data.path" else {"data.path": "b.txt"}),
        num_samples=1,
    )
    trials = [Trial(number, values, "finished") for number, values in enumerate(asked.points())]
    for trial in trials:
        write_run(asked.folder / "trials" / f"{trial.number:04d}", scores(20, 4, 3, 2), epochs=1)
    write_sweep(asked, trials)
    account = gather(asked.folder)
    against = by_hyperparameter(account, account.scored, [key])
    places = [x for trace in against.data if trace.yaxis == "y" for x in trace.x]
    assert places == (
        values
        if isinstance(values[0], (int, float)) and key != "data.distinct"
        else [format_value(value).replace("&", "&amp;").replace("<", "&lt;") for value in values]
    )


def test_the_front_of_two_objectives_is_marked(tmp_path):
    asked = large_sweep(tmp_path / "large")
    account = write_report(asked.folder)
    assert account.front == front(asked.config.objective, {entry.number: entry.outcome for entry in account.judged})
    assert "no other beats trial" in summary(account)
    rows = cells((asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [int(row["trial"]) for row in rows if row["front"] == "yes"] == account.front
    (marked,) = (t for t in page(asked.folder).figures[-1]["data"] if t.get("name") == "front" and t["xaxis"] == "x")
    assert marked["x"] == [entry.outcome.nll for entry in account.entries if entry.number in account.front]
