"""What a person sees in a real browser: reports, and TensorBoard's table of trials."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Page

from distvae.reports import report
from distvae.sweeps.progress import load_trials
from distvae.sweeps.report import write_hparams, write_report
from tests.conftest import free_port, wait_until
from tests.paper_folders import write_table
from tests.sweep_folders import ORDER, SCORES, large_sweep, pbt_sweep, small_sweep, sweep_of, write_sweep

pytestmark = pytest.mark.cluster

# Of what a page has drawn: marks in its pictures, and pixels of its canvases, by picture.
DRAWN = """places => places.map(place => {
  const pixels = canvas => {
    const copy = Object.assign(document.createElement("canvas"), {width: canvas.width, height: canvas.height});
    const pen = copy.getContext("2d");
    if (!canvas.width || !canvas.height) return 0;
    pen.drawImage(canvas, 0, 0);
    return pen.getImageData(0, 0, copy.width, copy.height).data.filter((value, i) => i % 4 == 3 && value > 0).length;
  };
  return {
    marks: place.querySelectorAll(".point, .js-line, .shapelayer path").length,
    pixels: [...place.querySelectorAll("canvas")].reduce((sum, canvas) => sum + pixels(canvas), 0),
    height: place.getBoundingClientRect().height,
  };
})"""


@dataclass
class Seen:
    """A page without a network, and what it asked for and complained of."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def rows(self) -> list[int]:
        return [int(row.get_attribute("data-trial")) for row in self.page.query_selector_all("#trials tbody tr")]


def is_drawn(picture: dict[str, float]) -> bool:
    return picture["height"] > 300 and (picture["marks"] >= 2 or picture["pixels"] > 500)


@pytest.fixture
def see(new_page) -> Callable[..., Seen]:
    """Opens a file with no network, and waits until its pictures are drawn."""

    def open_(path: Path, scheme: str = "light", width: int = 1400) -> Seen:
        seen = Seen(new_page(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True))
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.on(
            "console", lambda message: seen.complaints.append(message.text) if message.type == "error" else None
        )
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.goto(path.as_uri())
        wait_until(lambda: all(map(is_drawn, seen.page.eval_on_selector_all(".plot", DRAWN))), f"{path} is drawn")
        return seen

    return open_


@pytest.mark.parametrize(
    ("make", "scheme"), [(small_sweep, "light"), (large_sweep, "light"), (large_sweep, "dark"), (pbt_sweep, "light")]
)
def test_the_report_draws_every_picture_without_a_network(see, tmp_path, make, scheme):
    folder = tmp_path / "sweep"
    make(folder)
    write_report(folder)
    seen = see(folder / "sweep.html", scheme)
    assert [url for url in seen.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert seen.complaints == []
    drawn = seen.page.eval_on_selector_all(".plot", DRAWN)
    assert len(drawn) == (5 if make is large_sweep else 4)
    parallel = drawn.pop(-3)
    assert parallel["pixels"] > 500
    assert all(picture["marks"] >= 2 for picture in drawn)
    # The page stands in its width: only the table of trials may be scrolled.
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


CUT_OFF = "[...document.querySelectorAll('.wide')].filter(part => part.scrollWidth > part.clientWidth).length"


def test_no_column_is_cut_off_on_a_laptop(see, tmp_path):
    folder = tmp_path / "sweep"
    large_sweep(folder)
    write_report(folder)
    report.write(write_table(tmp_path / "runs", seeds=2), tmp_path / "paper")
    report.write(write_table(tmp_path / "others", rows=("lstm_lm", "kla", "mdr")), tmp_path / "field")
    for page in (folder / "sweep.html", tmp_path / "paper" / "report.html", tmp_path / "field" / "report.html"):
        seen = see(page, width=1280)
        assert seen.page.query_selector_all(".wide table")
        assert seen.page.evaluate(CUT_OFF) == 0, page


def test_panels_on_a_phone_are_as_wide_as_their_labels_need(see, tmp_path):
    folder = tmp_path / "sweep"
    small_sweep(folder)
    write_report(folder)
    seen = see(folder / "sweep.html", width=390)
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    widths = seen.page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.clientWidth)")
    assert min(widths) >= 640


def test_a_sweep_that_has_not_begun_is_a_page(see, tmp_path):
    asked = sweep_of(tmp_path / "sweep")
    write_sweep(asked, [])
    write_report(asked.folder)
    seen = see(asked.folder / "sweep.html")
    assert seen.complaints == []
    assert "No trial has started." in seen.page.inner_text("body")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("light", 390)])
def test_the_fields_report_shows_its_curves_without_a_network(see, tmp_path, scheme, width):
    report.write(write_table(tmp_path / "runs", rows=("lstm_lm", "kla", "mdr")), tmp_path / "report")
    seen = see(tmp_path / "report" / "report.html", scheme, width)
    assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []
    assert seen.complaints == []
    assert len(seen.page.query_selector_all(".panels svg path")) == 7
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_papers_report_shows_its_figure_without_a_network(see, tmp_path, scheme):
    report.write(write_table(tmp_path / "runs", seeds=2), tmp_path / "report")
    seen = see(tmp_path / "report" / "report.html", scheme)
    assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []
    assert seen.complaints == []
    assert seen.page.eval_on_selector("img", "img => img.complete && img.naturalWidth") > 300
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_table_is_sorted_by_the_column_that_is_clicked(see, tmp_path):
    folder = tmp_path / "sweep"
    small_sweep(folder)
    write_report(folder)
    seen = see(folder / "sweep.html")
    assert seen.rows() == [*ORDER, 2]

    def click(title: str) -> list[int]:
        seen.page.click(f"#trials th:text-is('{title}')")
        return seen.rows()

    by_nll = sorted(SCORES, key=lambda number: SCORES[number][2])
    assert click("NLL, K = 50") == [*by_nll, 2]  # without a value: last
    assert click("NLL, K = 50") == [*by_nll[::-1], 2]
    assert click("trial") == [0, 1, 2, 3, 4, 5]
    assert click("trial") == [5, 4, 3, 2, 1, 0]
    assert click("state") == [2, 5, 3, 1, 0, 4]  # failed, finished, stopped; else as they were
    assert click("rank") == [*ORDER, 2]
    assert seen.complaints == []


@pytest.fixture
def tensorboard() -> Iterator[Callable[[Path], str]]:
    """Starts a TensorBoard on a folder: its address."""
    started = []

    def start(folder: Path) -> str:
        port = free_port()
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1", "--port", port]
        started.append(subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "TensorBoard listens")
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait()


# All cells of TensorBoard's table of trials, which it draws in elements that hide their own.
CELLS = """() => {
  const found = [];
  const walk = node => {
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.children) walk(child);
    if (node.tagName == "VAADIN-GRID-CELL-CONTENT") found.push(node.innerText.trim());
  };
  walk(document.body);
  return found;
}"""


def table_of_trials(page: Page, address: str, trials: int, picture: Path) -> tuple[list[str], list[list[str]]]:
    """TensorBoard's HPARAMS: the names of the columns, and the texts of each row."""
    page.set_viewport_size({"width": 2200, "height": 900})
    page.goto(f"{address}/#hparams")

    def table() -> tuple[list[str], list[list[str]]] | None:
        page.wait_for_timeout(2000)
        cells = page.evaluate(CELLS)
        starts = [i for i, text in enumerate(cells) if text.endswith("/tensorboard")]
        if len(starts) < trials:  # it reads its folder by and by
            page.reload()
            return None
        names, *rows = ([text for text in cells[i:j] if text] for i, j in pairwise([0, *starts, len(cells)]))
        return names, rows

    found = wait_until(table, f"TensorBoard shows {trials} trials")
    page.screenshot(path=picture)
    return found


def test_tensorboard_shows_a_line_for_each_trial(new_page, tensorboard, tmp_path):
    folder = tmp_path / "sweep"
    asked = small_sweep(folder)
    for trial in load_trials(folder):
        write_hparams(folder, asked, trial)
        write_hparams(folder, asked, trial)
    names, rows = table_of_trials(new_page(), tensorboard(folder / "trials"), 6, tmp_path / "hparams.png")
    keys = ["kl.multiplier", "kl.target_rate"]
    metrics = [f"final/{name}" for name in ("nll", "kl", "neg_elbo", "active_units", "mutual_information")]
    assert names == ["Trial ID", "Show Metrics", *keys, *metrics]
    found = {row[0]: [float(text) for text in row[1:]] for row in rows}
    assert len(rows) == 6
    assert found.pop("0002/tensorboard") == [0.5, 2.0]
    assert found == {
        f"{number:04d}/tensorboard": pytest.approx([chi, rate, nll, kl, nll + mi / 4, units, mi])
        for number, (rate, chi, nll, kl, mi, units) in SCORES.items()
    }


def test_tensorboard_shows_the_last_generation_of_a_trial(new_page, tensorboard, tmp_path):
    folder = tmp_path / "sweep"
    asked = pbt_sweep(folder)
    for trial in load_trials(folder):
        write_hparams(folder, asked, trial)
    _, rows = table_of_trials(new_page(), tensorboard(folder / "trials"), 2, tmp_path / "hparams.png")
    assert [(row[0], float(row[1]), float(row[2])) for row in rows] == [
        ("0000/tensorboard", 4.0, 18.0), ("0001.1/tensorboard", 4.8, 17.5),
    ]  # fmt: skip
