"""``distvae explore`` in a real browser: click, type, move, on a desktop, in the dark and on a phone."""

import re
import subprocess
import sys

import pytest

from tests.conftest import PATIENCE

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def address(finished):
    command = [sys.executable, "-m", "distvae.cli", "explore", str(finished), "--beside", str(finished), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+) \(Ctrl-C to stop\)\n", line)
        assert found, line
        yield found[1]
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


@pytest.fixture
def opened(new_page, address):
    """Open the page; when all has answered, return it, and the errors that it reports."""

    def open_page(**options):
        page = new_page(**options)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator("#sentence-0 dl").wait_for()
        page.locator("#walk-1 li").nth(8).wait_for()
        page.locator(".map canvas").first.wait_for(state="attached")
        return page, errors

    return open_page


def test_a_click_shows_the_sentence_in_both_columns(opened):
    page, errors = opened(viewport={"width": 1280, "height": 900})
    picked = page.locator("#sentence-0 dd").first.inner_text()
    chosen = page.evaluate(
        """() => {
            const map = document.querySelector('.map .js-plotly-plot'), trace = map.data[0];
            const k = trace.customdata.findIndex(text => text != document.querySelector('#sentence-0 dd').innerText);
            map.emit('plotly_click', {points: [{curveNumber: 0, pointNumber: k, pointIndex: k, data: trace,
                                                x: trace.x[k], y: trace.y[k], customdata: trace.customdata[k]}]});
            return trace.customdata[k];
        }"""
    )
    assert chosen != picked
    for column in (0, 1):
        page.locator(f"#sentence-{column} dd").first.get_by_text(chosen, exact=True).wait_for()
    page.locator("#start").fill("Dragons fly .")
    page.locator("#start").press("Enter")
    page.locator("#walk-0 .error").get_by_text("'Dragons' is not one of the").wait_for()
    page.locator("#start").fill(chosen)
    page.get_by_role("button", name="Walk").click()
    page.locator("#walk-0 li").nth(8).wait_for()
    assert errors == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_nothing_is_cut_off_and_the_dark_is_dark(opened, tmp_path, width, scheme):
    page, errors = opened(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert brightness < 100 if scheme == "dark" else brightness > 600
    legend = page.evaluate(
        "[...document.querySelectorAll('.map .legendtext')].map(text => getComputedStyle(text).fill)"
    )
    assert all(sum(map(int, re.findall(r"\d+", fill)[:3])) > 500 for fill in legend) or scheme == "light"
    assert errors == []
