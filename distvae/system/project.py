"""The configs, launch files and Slurm scripts that come with the package, for a folder to work in."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from distvae.system.errors import UserError
from distvae.system.files import writing

FOLDERS = ("configs", "launch", "slurm")


def create(folder: Path) -> None:
    """Write ``FOLDERS`` into a folder, which may exist.

    Raises:
        UserError: it has one of them, or cannot be written.
    """
    for name in FOLDERS:
        if (folder / name).exists():
            raise UserError(f"{folder / name}: exists, and is not overwritten; name another folder")
    with writing(folder):
        for name in FOLDERS:
            shutil.copytree(_source() / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _source() -> Path:
    """Return the folder of ``FOLDERS``: within an installed package, or the checkout."""
    package = Path(__file__).resolve().parents[1]
    packed = package / "files"  # see setup.py
    return packed if packed.is_dir() else package.parent


def advice(folder: Path) -> list[str]:
    """Return lines on what to do next with a folder that ``create`` has written."""
    here = folder.resolve() == Path.cwd()
    return [
        f"{folder} has configs/, launch/ and slurm/, which are yours to edit. Next, for example:",
        *([] if here else [f"  cd {shlex.quote(str(folder))}"]),
        "  distvae train configs/own.yaml data.path=my_sentences.txt run=runs/mine",
        "  distvae sample runs/mine",
        "  distvae table --rows configs/demo --seeds 0",
        "  distvae sweep configs/sweep/demo.yaml",
        "  bash slurm/submit.sh --nodes=2 train configs/own.yaml data.path=my_sentences.txt  # see slurm/env.sh",
    ]
