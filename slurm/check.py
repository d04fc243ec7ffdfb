"""Check a job's input before it is queued or starts: ``check.py train CONFIG [key=value …]`` or ``check.py sweep SWEEP
[key=value …]``. Needs no GPU. Exits with 2 and one line on bad input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable

from distvae.config.keys import known_keys
from distvae.config.load import load_config
from distvae.config.schema import CAPTIONS, SNLI, Config, DataConfig
from distvae.system.arguments import Parser
from distvae.system.errors import UserError, tell


def main(kind: str, words: list[str]) -> int:
    try:
        data = _train(words) if kind == "train" else _sweep(words)
        _find(data)
    except UserError as error:
        tell(error)
        return 2
    return 0


def _train(words: list[str]) -> DataConfig:
    return load_config(*_parse(words, "CONFIG", known_keys(Config))).data


def _sweep(words: list[str]) -> DataConfig:
    from distvae.sweeps.specification import SweepConfig
    from distvae.sweeps.storage import load_sweep  # imports NumPy and PyArrow

    settings = [*known_keys(SweepConfig), *(f"set.{key}" for key in known_keys(Config))]
    sweep = load_sweep(*_parse(words, "SWEEP", settings))
    return sweep.config_of(sweep.samples()[0], sweep.folder).data


def _parse(words: list[str], metavar: str, settings: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    parser = Parser(usage=f"{metavar} [key=value …]", add_help=False, settings=settings)
    parser.add_argument("file", metavar=metavar)
    parser.add_argument("overrides", nargs="*", default=[])
    options, strays = parser.parse_known_args(words)
    if strays:
        raise UserError(
            f"{strays[0]} comes after {metavar}; options of sbatch come before the job, others before {metavar}"
        )
    return options.file, tuple(options.overrides)


def _find(data: DataConfig) -> None:
    """Refuse a missing relative path, which all nodes share, unless settings say that it is a dataset of the hub.

    An absolute path may exist only on the nodes.
    """
    path = data.path
    place = os.path.expanduser(path)
    if path in (CAPTIONS, SNLI) or os.path.exists(place) or glob.glob(place, recursive=True):
        return
    if data.subset or data.revision:
        return
    if not os.path.isabs(place):
        raise UserError(f"data.path={path}: no such file or folder; if it is a dataset of the hub, set data.revision")
    print(f"distvae: WARNING data.path={path}: not found here; the job fails unless its nodes have it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
