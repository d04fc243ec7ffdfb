"""The tables, which docs/scaling.md shows, and measured times beside the model's."""

import re
import shlex

import pytest

from distvae.config.schema import Config
from scaling import tables
from scaling.__main__ import main
from scaling.costs import ENGINES
from scaling.machine import ASSUMED, Network
from scaling.measure import Measurement, Step
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^```\n\$ python -m scaling (predict .*)\n((?:.*\n)*?)```$", PAGE, flags=re.MULTILINE)


def test_the_page_shows_tables():
    assert len(SHOWN) >= 2


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_page_shows_what_the_command_prints(capsys, monkeypatch, command, output):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    printed = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    if output.startswith("…\n"):  # a tail, from the beginning of a line
        assert printed.endswith(output.removeprefix("…"))
    else:
        assert output == printed


def cells(table):
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_every_engine_is_predicted_for_every_number_of_processes():
    *_, steps = tables.prediction(Config(), 300, 9, ASSUMED, (1, 8, 64))
    assert [row[0].split(" × ")[0] for row in cells(steps)] == [
        "1 process",
        *["8"] * len(ENGINES),
        *["64"] * len(ENGINES),
    ]


def test_measured_times_are_set_beside_the_models():
    machine = ASSUMED
    alone, two = (
        tables.measurement(Measurement(processes, all_reduce, machine, (Step(4, 0.01, 0.02, 0.015),)))
        for processes, all_reduce in ((1, {}), (2, {1024: 2e-5}))
    )
    assert [cells(table) for table in alone] == [[["4", "10.0", "20.0", "15.0", "0.75"]]]
    network, steps = two
    # Two passes of half the bytes over a ring of two.
    assert Network(10e-6, 10e9) == machine.across
    assert cells(network) == [["1,024", "0.020", "0.020", "1.01"]]
    assert cells(steps) == cells(alone[0])
