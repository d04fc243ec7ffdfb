"""The plots of a sweep report."""

from tests.sweep_folders import ORDER, SCORES
from tests.sweeps.pages import page


def test_every_picture_has_its_trials(small):
    against, parallel, curves, trade_off = page(small).figures
    nll = [y for trace in against["data"] if trace["yaxis"] == "y" for y in trace["y"]]
    assert sorted(nll) == sorted(found[2] for found in SCORES.values())
    assert against["layout"]["xaxis2"]["type"] == "log"
    assert [d["label"] for d in parallel["data"][0]["dimensions"]] == ["λ", "χ", "NLL", "KL", "AU", "MI"]
    assert parallel["data"][0]["dimensions"][2]["values"] == [SCORES[number][2] for number in ORDER]
    assert len(curves["data"]) == 2 * len(SCORES)
    assert all(trace["x"] == list(range(1, 9)) for trace in curves["data"])
    first = [(trace["x"], trace["y"]) for trace in trade_off["data"] if trace.get("xaxis") == "x" and "text" in trace]
    points = [point for xs, ys in first for point in zip(xs, ys, strict=True)]
    assert sorted(points) == sorted((nll, nll + mi / 4) for _, _, nll, _, mi, _ in SCORES.values())
