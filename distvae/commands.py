"""Commands of ``distvae`` that need no model: on files, data, settings and results."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distvae.runs import finding
from distvae.system import project
from distvae.system.arguments import check_probes
from distvae.system.errors import UserError, printable
from distvae.system.files import printable_json


def init(options: argparse.Namespace) -> None:
    """Write the configs, launch files and Slurm scripts into a folder to work in."""
    project.create(options.folder)
    if options.json:
        print_json({"folder": str(options.folder), "written": list(project.FOLDERS)})
    else:
        print(*map(printable, project.advice(options.folder)), sep="\n")


def data(options: argparse.Namespace) -> None:
    """Look at the sentences of a config: counts, lengths, unknown words, tokens, and what will hurt."""
    from distvae.config.load import load_config

    settings = load_config(options.config, options.overrides).data
    from distvae.data.look import look
    from distvae.reports import comparison, data

    found = look(settings, progress=sys.stderr.isatty())
    if options.json:
        print_json(asdict(found))
    else:
        comparison.show_parts(data.parts(found))


def config(options: argparse.Namespace) -> None:
    """List the settings of a training config: type, default, choices, meaning."""
    from distvae.config.reference import describe
    from distvae.reports import settings

    found = describe(options.keys)
    if options.json:
        print_json({"settings": [asdict(setting) for setting in found]})
    else:
        print("\n".join(settings.lines(found, min(shutil.get_terminal_size((100, 0)).columns, 120))).lstrip("\n"))


def compare(options: argparse.Namespace) -> None:
    """Print the results of runs side by side."""
    for run in options.runs:
        finding.check_folder(run, "compare reads the results of run folders")
    from distvae.reports import comparison
    from distvae.runs.results import load_results, results_to_dict

    results = {name_of(run): load_results(run) for run in options.runs}
    if len(results) < len(options.runs):  # two folders of one name
        results = {run: load_results(run) for run in options.runs}
    if options.json:
        print_json({name: results_to_dict(result) for name, result in results.items()})
    else:
        comparison.show(results)


def report(options: argparse.Namespace) -> None:
    """Compare runs of several methods and seeds, ranked by NLL; the paper's rows with its tables and claims."""
    from distvae.reports import comparison, document, report

    if any(not sentence.strip() for sentence in options.sentence):
        raise UserError("--sentence: is empty")
    check_probes(options)
    if options.probe:
        from distvae.runs import probed

        probed.complete(list(map(Path, options.runs)), options.label)
    found = report.write(options.runs, options.out, options.sentence)
    if options.json:
        print_json(document.as_dict(found))
    else:
        comparison.show_parts(document.tables(found))
        print(printable(Path(options.out, "report.html")))


def sweep_report(options: argparse.Namespace) -> None:
    """Write a sweep's sweep.html and sweep.md again, and print its trials, best first."""
    from distvae.reports import comparison
    from distvae.sweeps import report as sweep_report
    from distvae.sweeps import summary

    account = sweep_report.write_report(options.folder)
    if options.json:
        print_json(sweep_report.as_dict(account))
    else:
        comparison.show_parts([sweep_report.table(account), summary.summary(account), *summary.endings(account)])
        print(printable(account.folder / "sweep.html"))


def name_of(run: str) -> str:
    """Return the name of a run in tables: its folder's, also for an export in it, or its hub id."""
    if not os.path.lexists(run):
        return run
    folder = Path(run).resolve()
    return folder.parent.name if folder.name in ("best", "pretrained") else folder.name


def print_json(content: dict[str, Any]) -> None:
    """Print JSON that is safe on a terminal."""
    # An encoding that lacks characters gets JSON's own escapes.
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    print(printable_json(json.dumps(content, indent=2, ensure_ascii=not utf8)))
