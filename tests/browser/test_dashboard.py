"""Ray's own pages while a sweep runs."""

import re
import signal

import pytest

from tests.conftest import PATIENCE
from tests.sweeps.programs import SET, start, until, write

pytestmark = pytest.mark.cluster


def test_rays_dashboard_shows_the_cluster_and_the_trials(new_page, tmp_path, tiny):
    space = {"kl.multiplier": {"grid": [0.1, 0.2]}}
    endless = {"train.max_epochs": 100_000, "plateau.patience": 100_000}
    process = start(write(tmp_path, tiny, space=space, set=SET | endless))
    try:
        said = process.stdout.readline()
        address, token = re.fullmatch(r"Ray dashboard: (\S+) \(token in (\S+)\)\n", said).groups()
        until(lambda: (tmp_path / "sweep" / "trials" / "0001" / "metrics.jsonl").exists(), "a trial trains", process)
        page = new_page(viewport={"width": 1300, "height": 900})
        page.goto(f"{address}/#/actors")
        # Nothing is told to whoever has no token.
        page.locator("[role=dialog] input").wait_for()
        assert "ALIVE" not in page.inner_text("body")
        with open(token, encoding="ascii") as file:
            page.locator("[role=dialog] input").fill(file.read())
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("ALIVE x 2").wait_for()
        assert page.get_by_role("cell", name="trial", exact=True).count() == 2
        page.screenshot(path=tmp_path / "actors.png")
        page.goto(f"{address}/#/cluster")
        page.get_by_text(re.compile("reserved in placement groups")).first.wait_for()
        page.screenshot(path=tmp_path / "cluster.png")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 75
