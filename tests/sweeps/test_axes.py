"""Axes for every kind of values."""

import json

import pytest

from distvae.sweeps.account import gather
from distvae.sweeps.labels import format_value
from distvae.sweeps.plots import sections
from distvae.sweeps.progress import Trial
from tests.sweep_folders import (
    scores,
    sweep_of,
    write_run,
    write_sweep,
)


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
    against, *_ = (json.loads(figure) for section in sections(gather(asked.folder)) for figure in section.figures)
    places = [x for trace in against["data"] if trace["yaxis"] == "y" for x in trace["x"]]
    assert places == (
        values
        if isinstance(values[0], (int, float)) and key != "data.distinct"
        else [format_value(value).replace("&", "&amp;").replace("<", "&lt;") for value in values]
    )
