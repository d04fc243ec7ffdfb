import re
import xml.etree.ElementTree as ElementTree

import pytest

from distvae.reports.field import language_model, rank
from distvae.reports.field_figure import draw
from distvae.reports.methods import gather
from tests.paper_folders import write_run, write_table


@pytest.fixture(scope="module")
def figure(tmp_path_factory):
    methods = gather(write_table(tmp_path_factory.mktemp("figure"), seeds=2, rows=("ae", "lstm_lm", "kla", "mdr")))
    return draw([row.method for row in rank(methods)], language_model(methods))


def test_each_method_but_the_autoencoder_has_a_panel_with_a_line_for_each_run_and_metric(figure):
    assert [panel.title for panel in figure.panels] == ["KLA", "LSTM-LM", "MDR"]
    for panel in figure.panels:
        tree = ElementTree.fromstring(panel.svg)
        lines = [mark.get("class") for mark in tree if mark.tag == "path"]
        assert sorted(lines) == ["elbo"] * 2 + ([] if panel.title == "LSTM-LM" else ["kl"] * 2 + ["mi"] * 2)


def test_lines_stay_in_their_panel(figure):
    for panel in figure.panels:
        for path in re.findall(r'class="\w+" d="M([^"]+)"', panel.svg):
            points = [tuple(map(float, point.split())) for point in path.split("L")]
            assert len(points) == 16
            assert all(0 <= x <= 310 and 0 <= y <= 235 for x, y in points)


def test_the_file_has_every_panel_under_its_name(figure):
    tree = ElementTree.fromstring(figure.svg)
    texts = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"KLA", "MDR", "LSTM-LM"} <= set(texts)
    assert "prefers-color-scheme: dark" in figure.svg.decode()


def test_without_an_epoch_there_is_no_figure(tmp_path):
    write_run(tmp_path / "ae", "ae")
    assert draw(gather([tmp_path / "ae"]), None) is None
