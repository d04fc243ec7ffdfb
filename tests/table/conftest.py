from __future__ import annotations

import pytest
import yaml

from distvae.reports import report
from distvae.table.__main__ import main


@pytest.fixture
def rows(tiny, tmp_path):
    """Writes a folder of configs, each of which is the tiny run's with other sections."""

    def write(**changes):
        folder = tmp_path / "rows"
        folder.mkdir()
        for name, sections in changes.items():
            tree = yaml.safe_load(tiny.read_text(encoding="utf-8"))
            for section, values in sections.items():
                tree[section] = tree[section] | values
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the program on input that it must refuse; returns the one line that it says."""

    def run(*arguments):
        assert main([*map(str, arguments), "--folder", str(tmp_path / "table")]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("distvae: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


@pytest.fixture
def written(monkeypatch):
    """The reports that are asked for in the end: of which runs, and where."""
    reports, write = [], report.write

    def recorded(*asked):
        reports.append(asked)
        return write(*asked)

    monkeypatch.setattr(report, "write", recorded)
    return reports


@pytest.fixture
def stand_in(tmp_path, monkeypatch, written):
    """Puts a program of a few lines in the place of distvae/train.py, which knows the name of its row."""

    def write(*lines):
        program = tmp_path / "code" / "distvae" / "train.py"
        program.parent.mkdir(parents=True)
        head = ["import os, signal, sys, time", "row = os.path.basename([a for a in sys.argv if a[:4] == 'run='][0])"]
        program.write_text("\n".join([*head, *lines]), encoding="utf-8")
        monkeypatch.setattr("distvae.table.plan.ROOT", tmp_path / "code")

    return write
