"""Find and read the texts of each split, from local files or the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, is_offline_mode

from distvae.config.schema import CAPTIONS, SNLI, DataConfig
from distvae.data.readers.columns import TEXT_COLUMN, Texts, reason
from distvae.data.readers.lines import is_gzip, suffix
from distvae.data.readers.read import READERS, read_dataset, read_file
from distvae.system.errors import UserError
from distvae.system.files import sha256

SPLITS = ("train", "valid", "test")
HUB_SPLITS = ("train", "validation", "test")
# Split names in file names and on the hub.
SPLIT_OF_NAME = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
# Key of a single file that is yet to be split.
WHOLE_FILE = "file"

# Pinned so that everyone has the same sentences and a prepared corpus is found without a network.
SNLI_REVISION = "cdb5c3d5eed6ead6e5a341c8e56e669bb666725b"
SNLI_COLUMNS = ("premise", "hypothesis")
HUB_TIMEOUT_SECONDS = 10

KINDS = f"{', '.join(READERS)}; all but .parquet also as .gz"


def find_files(data: DataConfig) -> dict[str, Path]:
    """Return the file of each split, or a single ``WHOLE_FILE``, or none if the source is not local.

    Raises:
        UserError: a file is missing, ambiguous or of an unknown kind.
    """
    if data.path in (CAPTIONS, SNLI):
        return {}
    try:
        return _look(expand("data.path", data.path), data)
    except OSError as error:  # the name is too long, or a folder is not readable
        raise UserError(f"data.path={data.path}: cannot be read: {error.strerror}") from None


def origin(data: DataConfig, files: dict[str, Path]) -> dict[str, Any]:
    """Return what determines the rows, as plain values: each file's suffix and SHA-256, or the hub's revision."""
    if data.path == SNLI:
        return {"hub": SNLI, "revision": SNLI_REVISION}
    return {name: [suffix(path), is_gzip(path), _sha256(path)] for name, path in files.items()}


def states(files: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    """Return metadata of each file that any write changes, even one that is undone."""
    try:
        stats = {name: path.stat() for name, path in files.items()}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return {name: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats.items()}


def expand(key: str, path: str) -> Path:
    """Resolve ``~`` in the value of a config key."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{key}={path}: no such user, so its home directory is unknown") from None


def _look(path: Path, data: DataConfig) -> dict[str, Path]:
    if path.is_dir():
        return {split: _find_split(path, split, data.columns) for split in SPLITS}
    if not path.exists():
        raise UserError(
            f"data.path={data.path}: no such file or folder, nor a built-in corpus ({CAPTIONS}, or {SNLI} from the hub)"
        )
    if not path.is_file():
        raise UserError(f"{path}: is a pipe, a socket or a device, not a file")
    if not _is_readable(path):
        raise UserError(f"{path}: has an unsupported file type ({KINDS})")
    return {WHOLE_FILE: path}


def _find_split(folder: Path, split: str, columns: tuple[str, ...] | None) -> Path:
    candidates = sorted(path for path in folder.iterdir() if _is_readable(path) and split in _splits_named(path))
    if len(candidates) > 1 and columns not in (None, (TEXT_COLUMN,)):
        # As in SNLI's own folder, which has everything twice. Plain text has no columns to name.
        candidates = [path for path in candidates if suffix(path) != ".txt"]
    if not candidates:
        raise UserError(f"{folder}: has no file for {split}, such as {split}.txt ({KINDS})")
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise UserError(f"{folder}: has several files for {split}: {names}; keep one")
    others = _splits_named(candidates[0]) - {split}
    if others:
        raise UserError(f"{candidates[0]}: is it {split} or {' or '.join(sorted(others))}? Its name must say one split")
    return candidates[0]


def _is_readable(path: Path) -> bool:
    """Return whether the path is a visible file with a supported suffix."""
    well = suffix(path) in READERS and not (is_gzip(path) and suffix(path) == ".parquet")
    return well and not path.name.startswith(".") and path.is_file()


def _splits_named(path: Path) -> set[str]:
    """Return the splits named in a file's name: ``snli_1.0_dev.jsonl`` → {valid}."""
    return {SPLIT_OF_NAME[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in SPLIT_OF_NAME}


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def load(data: DataConfig, files: dict[str, Path], work: Path) -> dict[str, Texts]:
    """Read and concatenate the wanted columns of each split, or of ``WHOLE_FILE``.

    Args:
        work: folder of the Arrow files.

    Raises:
        UserError: a file does not match its suffix, or a column is missing or does not hold text.
    """
    if data.path == SNLI:
        columns = data.columns or SNLI_COLUMNS
        hub = _load_hub()
        names = {SPLIT_OF_NAME[name]: name for name in HUB_SPLITS}
        return {
            split: read_dataset(hub[name], f"{SNLI}, {name}", split, columns, work) for split, name in names.items()
        }
    columns = data.columns or (TEXT_COLUMN,)
    return {name: read_file(path, name, columns, work) for name, path in files.items()}


def _load_hub() -> datasets.DatasetDict:
    # The download stays in the hub's cache, where offline sessions (HF_HUB_OFFLINE=1) find it.
    try:
        if not is_offline_mode():
            # Fail fast without a network: load_dataset would retry for half a minute.
            HfApi().dataset_info(SNLI, revision=SNLI_REVISION, timeout=HUB_TIMEOUT_SECONDS)
        return datasets.load_dataset(SNLI, revision=SNLI_REVISION)
    except Exception as error:
        raise UserError(
            f"{SNLI}: cannot be loaded from the hub ({reason(error)}); without a network, copy SNLI 1.0"
            " (https://nlp.stanford.edu/projects/snli) here and pass its folder:"
            " data.path=FOLDER data.columns=[sentence1,sentence2]"
        ) from error
