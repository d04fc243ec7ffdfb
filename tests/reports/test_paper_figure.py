import re
from xml.etree import ElementTree

from distvae.reports.methods import gather
from distvae.reports.paper_figure import draw
from tests.paper_folders import write_run, write_table

NAMES = ["KLA", "PT + KLA", "PT + KLA + FB", "PT + KLA + SFB"]


def drawn(folders) -> tuple[list[str], list[str]]:
    """Return the texts of the figure of these runs, and the styles of its lines."""
    nodes = list(ElementTree.fromstring(draw(gather(folders))).iter())
    texts = [node.text for node in nodes if node.tag.endswith("}text")]
    return texts, [node.get("style") or "" for node in nodes if node.tag.endswith("}path")]


def test_each_run_of_a_vae_has_a_line_in_every_panel(tmp_path):
    texts, styles = drawn(write_table(tmp_path))
    assert {*NAMES, "validation KL, nats", "validation MI, nats", "γ", "epoch"} <= set(texts)
    assert "AE" not in texts
    for colour in ("#7a7a7a", "#c2437f", "#d9772b", "#2a7fb8"):
        assert sum(f"stroke: {colour}" in style and "fill: none" in style for style in styles) >= 3


def test_a_second_method_of_a_kind_has_another_colour(tmp_path):
    write_run(tmp_path / "four", "pt_kla_sfb")
    write_run(tmp_path / "eight", "pt_kla_sfb", kl={"target_rate": 8.0})
    texts, styles = drawn([tmp_path / "four", tmp_path / "eight"])
    assert {f"PT + KLA + SFB (kl.target_rate={rate})" for rate in ("4.0", "8.0")} <= set(texts)
    for colour in ("#2a7fb8", "#1a9e6b"):
        assert (
            sum(f"stroke: {colour}" in style and "fill: none" in style for style in styles) == 4
        )  # three panels and the legend


def test_a_figure_of_no_vae_is_drawn(tmp_path):
    texts, _ = drawn(write_table(tmp_path, rows=("ae",)))
    assert "epoch" in texts


def test_the_figure_has_colours_for_a_dark_page(tmp_path):
    svg = draw(gather(write_table(tmp_path, rows=("pt_kla_sfb",)))).decode()
    dark = svg.split("(prefers-color-scheme: dark) {")[1].split("</style>")[0]
    styled = set(re.findall(r'\[style\*="(stroke: #\w+)"\]', dark))
    assert {style for style in styled if style in svg.split("</defs>", 1)[1]} >= {
        "stroke: #000000", "stroke: #444444", "stroke: #e6e6e6",
    }  # fmt: skip
    assert "fill: #ffffff" not in svg
