"""Find local files of sentences, by their names and suffixes."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data.readers.columns import TEXT_COLUMN
from distvae.data.readers.lines import COMPRESSIONS, compression, suffix
from distvae.data.readers.read import BINARY, READERS
from distvae.data.splits import SPLIT_OF_NAME, SPLITS, WHOLE_FILE, choose
from distvae.system.errors import UserError

KINDS = f"{', '.join(READERS)}; all but {' and '.join(BINARY)} also as {', '.join(COMPRESSIONS)}"

# The files of each split, or of WHOLE_FILE; in a fixed order.
Files = dict[str, tuple[Path, ...]]

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"


def find(path: Path, data: DataConfig) -> Files:
    """Return the files of each split, or of a single ``WHOLE_FILE``. Valid and test may be missing.

    Raises:
        UserError: a file is missing, ambiguous or of an unknown kind.
    """
    if (path / _SAVED_SPLITS).is_file():
        names = _listed(path / _SAVED_SPLITS, "splits")
        chosen = choose(names, data.split, str(path))
        return {split: saved(path / name) for split, name in chosen.items()}
    if data.split is not None:
        raise UserError(f"data.split: is for the hub and for save_to_disk, and {path} is from neither; leave it out")
    if (path / _SAVED).is_file():
        return {WHOLE_FILE: saved(path)}
    if path.is_dir():
        return {split: (_find_split(path, split, data.columns),) for split in SPLITS}
    if "://" in data.path:
        raise UserError(
            f"data.path={data.path}: is a URL; download the files, or pass ORG/NAME of a dataset of the hub"
        )
    if not path.exists() and glob.has_magic(str(path)):
        return _matches(path)
    if not path.exists():
        raise UserError(f"data.path={data.path}: no such file or folder, nor a built-in corpus ({CAPTIONS})")
    if not path.is_file():
        raise UserError(f"{path}: is a pipe, a socket or a device, not a file")
    if not _is_readable(path):
        raise UserError(f"{path}: has an unsupported file type ({KINDS})")
    return {WHOLE_FILE: (path,)}


def _matches(pattern: Path) -> Files:
    """Return the files of a pattern, by split if the name of each says one, and one of them says train."""
    paths = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise UserError(f"data.path={pattern}: no file matches; quote the pattern, and check the folder")
    wrong = [path.name for path in paths if not _is_readable(path)]
    if wrong:
        raise UserError(f"data.path={pattern}: matches {_some(wrong)}, which has an unsupported file type ({KINDS})")
    named = [_splits_named(path) for path in paths]
    if {"train"} in named and all(len(names) == 1 for names in named):
        found = {split: tuple(p for p, names in zip(paths, named, strict=True) if split in names) for split in SPLITS}
        return {split: files for split, files in found.items() if files}
    return {WHOLE_FILE: tuple(paths)}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" … ({len(names):,} in total)" if len(names) > 3 else "")


def saved(folder: Path) -> tuple[Path, ...]:
    """Return the Arrow files of a folder that ``Dataset.save_to_disk`` wrote, in their order."""
    files = tuple(folder / name for name in _listed(folder / _SAVED, "_data_files", "filename"))
    if not files:
        raise UserError(f"{folder}: contains no sentences")
    if not all(file.is_file() and file.parent == folder for file in files):
        raise UserError(f"{folder}: lacks files that its {_SAVED} lists; save the dataset again")
    return files


def _listed(path: Path, key: str, name: str | None = None) -> list[str]:
    """Return the names that a file of ``save_to_disk`` lists."""
    try:
        listed = json.loads(path.read_bytes())[key]
        names = [item if name is None else item[name] for item in listed]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = [None]
    if not all(isinstance(item, str) for item in names):
        raise UserError(f"{path}: does not list {key.strip('_')}; save the dataset again")
    return names


def _find_split(folder: Path, split: str, columns: tuple[str, ...] | None) -> Path:
    candidates = sorted(path for path in folder.iterdir() if _is_readable(path) and split in _splits_named(path))
    if len(candidates) > 1 and columns not in (None, (TEXT_COLUMN,)):
        # As in SNLI's own folder, which has everything twice. Plain text has no columns to name.
        candidates = [path for path in candidates if suffix(path) != ".txt"]
    if not candidates:
        raise UserError(f"{folder}: has no file for {split}, such as {split}.txt ({KINDS})")
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise UserError(
            f"{folder}: has several files for {split}: {names}; keep one, or pool them by a pattern, such as"
            f" data.path='{folder}/*{suffix(candidates[0])}'"
        )
    others = _splits_named(candidates[0]) - {split}
    if others:
        raise UserError(f"{candidates[0]}: is it {split} or {' or '.join(sorted(others))}? Its name must say one split")
    return candidates[0]


def _is_readable(path: Path) -> bool:
    """Return whether the path is a visible file with a supported suffix."""
    well = suffix(path) in READERS and not (compression(path) and suffix(path) in BINARY)
    return well and not path.name.startswith(".") and path.is_file()


def _splits_named(path: Path) -> set[str]:
    """Return the splits named in a file's name: ``snli_1.0_dev.jsonl`` → {valid}."""
    return {SPLIT_OF_NAME[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in SPLIT_OF_NAME}


def every(files: Files) -> Iterable[Path]:
    """Yield all files."""
    for paths in files.values():
        yield from paths
