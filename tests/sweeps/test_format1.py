"""Use a sweep of format 1, ``tests/fixtures/format1/sweep``, written before files had a format number."""

import shutil
from pathlib import Path

import pytest
import yaml

from distvae.sweeps.report import write_report
from distvae.sweeps.storage import open_sweep
from distvae.system.formats import FORMAT, FormatError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format1" / "sweep"


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(FIXTURE, tmp_path / "sweep")


def test_it_has_no_format_numbers():
    for name in ("sweep.yaml", "base.yaml", "trials.json"):
        assert "format" not in yaml.safe_load((FIXTURE / name).read_text(encoding="utf-8"))


def test_it_opens_and_is_reported(folder):
    asked = open_sweep(folder)
    assert (asked.folder, asked.trials) == (folder, 2)
    account = write_report(folder)
    assert [(entry.number, entry.outcome.nll) for entry in account.entries] == [(1, 19.0), (0, 20.0)]
    assert account.best.number == 1


def test_a_newer_format_is_refused(folder):
    tree = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"format": FORMAT + 1, **tree}), encoding="utf-8")
    with pytest.raises(FormatError, match=f"format {FORMAT + 1}"):
        open_sweep(folder)
