"""An installed wheel trains, samples, compares and sweeps where there is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, needs

pytestmark = pytest.mark.cluster

CONFIG = {
    "data": {"path": "sentences.txt", "train_size": 80, "valid_size": 20, "test_size": 20, "cache": "cache"},
    "model": {"embedding_size": 8, "hidden_size": 8, "latent_size": 4},
    "optimizer": {"batch_size": 16, "learning_rate": 0.1},
    "pretrain": {"max_epochs": 1},
    "train": {"max_epochs": 2},
    "kl": {"anneal_epochs": 1, "target_rate": 0.3},
    "evaluation": {"importance_samples": 10, "samples": 2},
    "cpu_threads": 1,
    "run": "run",
}
SWEEP = {
    "base": "own.yaml",
    "run": "sweep",
    "space": {"kl.target_rate": {"grid": [0.3, 0.6]}},
    "finalists": {"count": 1},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of an environment with the wheel, and with the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "distvae", source / "distvae", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *options, "--no-build-isolation", "--wheel-dir", folder / "wheels", source], check=True
    )
    (wheel,) = (folder / "wheels").iterdir()
    venv.create(folder / "environment", symlinks=True)
    programs = folder / "environment" / "bin"
    python = programs / "python"
    subprocess.run([*pip[:3], "--python", python, *pip[3:], "install", *options, wheel], check=True)
    # A path alone: files that install a checkout there have no effect.
    where = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    Path(where, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def test_a_wheel_trains_samples_compares_and_sweeps_without_a_checkout(installed, tmp_path):
    needs(shutil.which("ray", path=str(Path(sys.executable).parent)), "no Ray: pip install -e '.[sweep]'")
    words = ("a", "the", "dog", "cat", "man", "sees", "hears", "likes", "runs", "sleeps")
    sentences = [" ".join(words[(7 * line + 3 * place) % 10] for place in range(3 + line % 5)) for line in range(120)]
    (tmp_path / "sentences.txt").write_text("\n".join(sentences) + "\n")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [installed / program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    package = run("python", "-c", "import distvae; print(distvae.__file__)").strip()
    assert Path(package).is_relative_to(installed.parent)
    run("python", "-m", "distvae.train", "own.yaml")
    assert len(run("distvae", "sample", "run", "--count", "3").splitlines()) == 3
    assert "run" in run("distvae", "compare", "run")
    run("python", "-m", "distvae.sweeps", "sweep.yaml")
    trials = json.loads((tmp_path / "sweep" / "trials.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["finished"] * 2
    assert len(list((tmp_path / "sweep" / "finalists").iterdir())) == 1
    assert (tmp_path / "sweep" / "sweep.html").is_file()
