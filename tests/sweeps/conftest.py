import shutil
import sys
from pathlib import Path

import pytest
import yaml

from distvae.sweeps.report import write_report
from distvae.sweeps.storage import load_sweep
from distvae.sweeps.sweep import Sweep
from tests.conftest import needs
from tests.sweep_folders import BASE, LAMBDA, small_sweep


@pytest.fixture
def ask(tmp_path):
    """Reads a sweep's file with this content."""

    def read(*overrides: str, base: str = BASE, **content) -> Sweep:
        (tmp_path / "base.yaml").write_text(base)
        tree = {"base": str(tmp_path / "base.yaml"), "run": str(tmp_path / "run"), "space": LAMBDA} | content
        (tmp_path / "asked.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return load_sweep(tmp_path / "asked.yaml", overrides)

    return read


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A finished sweep's folder, with its report. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("sweeps") / "small"
    small_sweep(folder)
    write_report(folder)
    return folder


@pytest.fixture
def ray() -> None:
    """Needs Ray."""
    needs(shutil.which("ray", path=str(Path(sys.executable).parent)), "no Ray: pip install -e '.[sweep]'")
