"""The table program: ``distvae table [option …] [key=value …]``, which trains every row of a table on this machine.

A row is a config of the folder ``--rows``, and a training run for each seed; several runs train side by side. Rows with
pretraining start from the encoder of the row that pretrains alike and does nothing else. Rerun the same command to
resume: finished runs are skipped. At the end the program writes a report of all rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distvae.config.keys import known_keys
from distvae.config.schema import Config, DataConfig
from distvae.system.arguments import Parser, add_probes, check_probes, integer
from distvae.system.errors import UserError, printable
from distvae.system.programs import run_program
from distvae.system.signals import INTERRUPTED, Signals
from distvae.table.machine import RUNS_PER_GPU, Table, slots
from distvae.table.plan import OWN_KEYS, Row, plan, print_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the rows. Return 0 when all have finished, 1 when one has failed, 2 on bad input, 75 when interrupted, and
    130 after Ctrl-C before a run has started."""
    signals = Signals()
    return run_program(lambda: _carry_out(_parser().parse_args(arguments), signals), signals=signals)


def _carry_out(options: argparse.Namespace, signals: Signals) -> int:
    if options.side_by_side is not None and options.side_by_side < 1:
        raise UserError(f"--side-by-side {options.side_by_side}: should be at least 1")
    names = [options.rows.resolve().name, *([] if options.corpus is None else [options.corpus.stem])]
    folder = options.folder or Path("runs", "table", "-".join(names))
    rows = plan(options.rows, folder, options.seeds, options.overrides, options.corpus, options.epochs)
    labelled = _labelled(options, rows)
    if options.plan:
        print_plan(rows)
        return 0
    from distvae.data import corpus
    from distvae.reports import comparison, document, report  # slow imports, which --plan does not need

    free = slots(rows, options.side_by_side)
    # Prepare the sentences here, so that an error is reported once and not by every row.
    for data, labels in dict.fromkeys([*((row.config.data, None) for row in rows if not row.finished), *labelled]):
        corpus.prepare(data, sys.stderr.isatty(), labels)
    code = Table(rows, folder, free, signals).run()
    begun = [folder / row.name for row in rows if (folder / row.name / "config.yaml").is_file()]
    if code != INTERRUPTED and begun:
        if options.probe:
            from distvae.runs import probed

            for run in probed.complete(begun, options.label):
                print(printable(f"{run.relative_to(folder)}: probed"))
        comparison.show_parts(document.tables(report.write(begun, folder)))
        print(printable(folder / "report.html"))
    return code


def _labelled(options: argparse.Namespace, rows: list[Row]) -> list[tuple[DataConfig, tuple[str, ...]]]:
    """Return the sentences of rows, and the labels that they are probed for; none without ``--probe``.

    Raises:
        UserError: scikit-learn is missing, or the sentences have no labels.
    """
    check_probes(options)
    if not options.probe:
        return []
    from distvae.evaluation.probes import check_installed
    from distvae.runs.reading import with_labels

    check_installed("--probe")
    return [(row.config.data, with_labels(row.config.data, options.label).labels) for row in rows]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="distvae table",
        description="Train every row of a table, and report on them.",
        settings=set(known_keys(Config)) - set(OWN_KEYS),
    )
    parser.add_argument(
        "--rows", type=Path, default=Path("configs/snli"), metavar="FOLDER",
        help="the folder with a config for each row (default: configs/snli, the paper's Table 1)",
    )  # fmt: skip
    parser.add_argument(
        "--corpus", type=Path, metavar="FILE",
        help="settings of every row, as a config file; key=value overrides them (such as configs/corpus/snli.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=integer(1), metavar="N", help="at most N epochs for each row in all, its pretraining included"
    )
    parser.add_argument(
        "--folder", type=Path, help="the folder of all runs (default: runs/table/ and the names of --rows and --corpus)"
    )
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="S,S,…", help="default 0,1,2")
    parser.add_argument(
        "--side-by-side", type=int, metavar="N",
        help=f"runs at once (default: one per core; with GPUs, up to {RUNS_PER_GPU} per GPU)",
    )  # fmt: skip
    add_probes(parser)
    parser.add_argument("--plan", action="store_true", help="print the runs and what each waits for, and train none")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings of every row, such as data.path=FOLDER"
    )
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: should be numbers with commas between, such as 0,1,2") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: should be different numbers from 0")
    return seeds


if __name__ == "__main__":
    sys.exit(main())
