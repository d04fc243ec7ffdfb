"""The sweep program: ``distvae sweep SWEEP.yaml [key=value …]``, also ``python -m distvae.sweeps``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from distvae.config.keys import known_keys
from distvae.config.schema import Config
from distvae.reports import comparison
from distvae.sweeps import INSTALL, checks, storage
from distvae.sweeps.labels import format_value
from distvae.sweeps.ray.scratch import scratch
from distvae.sweeps.specification import SweepConfig
from distvae.sweeps.sweep import Sweep
from distvae.system.arguments import Parser
from distvae.system.errors import UserError
from distvae.system.plural import counted
from distvae.system.programs import run_program


def main(arguments: list[str] | None = None) -> int:
    """Run the program. Return 0 when the sweep has ended, 1 when every trial has failed, 2 on bad input, and 75 when
    the sweep was interrupted and can be resumed."""
    return run_program(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = Parser(
        prog="distvae sweep",
        description="Run a sweep with Ray Tune.",
        settings=[*known_keys(SweepConfig), *(f"set.{key}" for key in known_keys(Config))],
    )
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="a YAML file, such as configs/sweep/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as num_samples=16 trial.gpus=0.25"
    )
    parser.add_argument("--resume", metavar="FOLDER", help="resume the sweep in this folder")
    parser.add_argument("--dry-run", action="store_true", help="print the trials and their resources, and run none")
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="most trials to run at once")
    options = parser.parse_args(arguments)
    if options.resume is not None:
        if options.sweep is not None:
            raise UserError("--resume FOLDER reads the sweep from its folder: leave out SWEEP")
        sweep = storage.open_sweep(Path(options.resume))
    elif options.sweep is None:
        raise UserError("no sweep: name a file SWEEP.yaml, or --resume FOLDER")
    else:
        sweep = storage.load_sweep(options.sweep, tuple(options.overrides))
    changes: dict[str, Any] = {"run": str(sweep.folder.absolute())}
    if options.max_concurrent is not None:
        if options.max_concurrent < 1:
            raise UserError(f"--max-concurrent {options.max_concurrent}: should be at least 1")
        changes["max_concurrent"] = options.max_concurrent
    sweep = replace(sweep, config=replace(sweep.config, **changes))
    checks.check_room(sweep)
    if options.dry_run:
        show_plan(sweep)
        return 0
    with scratch() as folder:
        try:
            # Ray reads the environment that scratch() sets when it is imported.
            from distvae.sweeps.ray.driver import run_sweep
        except ModuleNotFoundError as error:
            raise UserError(f"a sweep needs {error.name}: {INSTALL}") from None
        return run_sweep(sweep, folder)


def show_plan(sweep: Sweep) -> None:
    """Print what a sweep would run."""
    settings = sweep.config.trial
    shared = sweep.pretrainings()
    parts: list[Table | str] = []
    if sweep.config.search == "random":
        shown = Table(box=None)
        for title in ("trial", *sweep.config.space):
            shown.add_column(comparison.cell(title))
        for number, values in enumerate(sweep.points()):
            cells = (format_value(values[key]) if key in values else "–" for key in sweep.config.space)
            shown.add_row(str(number), *map(comparison.cell, cells))
        parts.append(shown)
    else:
        parts.append("Optuna draws each trial from the results so far")
    gpus = "1 GPU if there are any" if settings.gpus is None else counted(settings.gpus, "GPU")
    each = "" if settings.workers == 1 else f" for each of {settings.workers} processes"
    parts.append(f"{counted(sweep.trials, 'trial')}, each with {counted(settings.cpus, 'CPU')} and {gpus}{each}")
    if shared:
        parts.append(f"{counted(len(shared), 'pretraining')}, shared by all: {', '.join(shared)}")
    comparison.show_parts(parts)
    warning = checks.warn_of_repeats(sweep)
    if warning is not None:
        print(f"distvae: WARNING {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
