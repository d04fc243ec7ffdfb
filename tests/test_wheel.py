"""An installed wheel writes its files, trains, samples, compares, sweeps and submits where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from distvae.system.project import FOLDERS
from tests.conftest import PATIENCE, ROOT, needs

pytestmark = pytest.mark.cluster

SOURCES = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
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
    source.mkdir()
    for name in SOURCES:  # what an image is built from
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
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


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program of the environment, in a new folder or below; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{tmp_path / 'programs'}:{installed}:/usr/bin:/bin"

    def run(program: str, *arguments: str, folder: str = ".") -> str:
        done = subprocess.run(
            [shutil.which(program, path=environment["PATH"]), *arguments],
            cwd=tmp_path / folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def sentences() -> str:
    words = ("a", "the", "dog", "cat", "man", "sees", "hears", "likes", "runs", "sleeps")
    lines = [" ".join(words[(7 * line + 3 * place) % 10] for place in range(3 + line % 5)) for line in range(120)]
    return "\n".join(lines) + "\n"


def test_what_init_writes_is_all_that_a_user_needs(tmp_path, run):
    assert "\n  cd mine\n" in run("distvae", "init", "mine")
    folder = tmp_path / "mine"
    for name in FOLDERS:
        files = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*.*") if path.suffix != ".pyc"}
        assert {path.relative_to(folder / name) for path in (folder / name).rglob("*.*")} == files
    (folder / "all.txt").write_text(sentences())
    tiny = ["model.hidden_size=8", "model.embedding_size=8", "model.latent_size=4", "data.cache=cache", "cpu_threads=1"]
    tiny += ["data.path=all.txt", "train.max_epochs=1", "evaluation.importance_samples=2"]
    run("distvae", "train", "configs/own.yaml", *tiny, "run=runs/own", folder="mine")
    assert len(run("distvae", "sample", "runs/own", "--count", "3", folder="mine").splitlines()) == 3


def test_slurm_scripts_of_init_submit_a_copy_of_the_installed_package(tmp_path, run):
    run("distvae", "init", ".")
    scripts = {path: path.read_text() for path in (tmp_path / "slurm").iterdir()}
    assert all(os.access(path, os.X_OK) == text.startswith("#!") for path, text in scripts.items())
    found = re.findall(r"\b(?:slurm|launch|configs)/[a-z/]+\.\w+", "\n".join(scripts.values()))
    assert {"launch/sweep.py", "slurm/check.py"} <= set(found)
    assert [name for name in found if not (tmp_path / name).exists()] == []
    sbatch = tmp_path / "programs" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 7\n")
    sbatch.chmod(0o755)
    said = run("bash", "slurm/submit.sh", "--nodes=2", "train", "configs/demo/kla.yaml", "seed=3")
    code = tmp_path / re.search(r"^  (\S+)/  +the code that it runs$", said, flags=re.MULTILINE)[1]
    for name in ("distvae/train.py", "launch/accelerate/multi_node.yaml", "configs/demo/kla.yaml", "slurm/train.sh"):
        assert (code / name).is_file(), name


def test_a_wheel_trains_samples_compares_and_sweeps_without_a_checkout(installed, tmp_path, run):
    needs(shutil.which("ray", path=str(Path(sys.executable).parent)), "no Ray: pip install -e '.[sweep]'")
    (tmp_path / "sentences.txt").write_text(sentences())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    package = run("python", "-c", "import distvae; print(distvae.__file__)").strip()
    assert Path(package).is_relative_to(installed.parent)
    run("python", "-m", "distvae.train", "own.yaml")
    assert len(run("distvae", "sample", "run", "--count", "3").splitlines()) == 3
    assert "run" in run("distvae", "compare", "run")
    run("distvae", "sweep", "sweep.yaml")
    trials = json.loads((tmp_path / "sweep" / "trials.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["finished"] * 2
    assert len(list((tmp_path / "sweep" / "finalists").iterdir())) == 1
    assert (tmp_path / "sweep" / "sweep.html").is_file()
