"""A sweep's report: ``sweep.html`` and ``sweep.md`` in its folder, and TensorBoard's table of trials."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from tensorboard.compat.proto.summary_pb2 import Summary

from distvae.reports import comparison
from distvae.reports.pages import render
from distvae.runs.results import results_to_dict
from distvae.runs.trackers.tensorboard import remove_hparams, summaries, write_session
from distvae.sweeps import INSTALL
from distvae.sweeps.account import Account, ScoredTrial, gather, read_trial
from distvae.sweeps.columns import columns
from distvae.sweeps.labels import format_duration, format_value
from distvae.sweeps.lineage import Generation
from distvae.sweeps.progress import Trial
from distvae.sweeps.ranking import Outcome
from distvae.sweeps.summary import by_elbo, endings, lineage, reading, summary
from distvae.sweeps.sweep import Sweep
from distvae.sweeps.timing import by_the_clock, by_the_trials, utilisation
from distvae.system.errors import UserError
from distvae.system.files import write_text, writing
from distvae.system.markdown import escaped, markdown_table


def write_report(folder: str | Path) -> Account:
    """Write ``sweep.html`` and ``sweep.md`` to a sweep folder, and return its content.

    Raises:
        UserError: the folder is not a sweep folder, is damaged, or cannot be written.
    """
    account = gather(folder)
    pages = {"sweep.md": markdown(account), "sweep.html": html(account)}
    with writing(account.folder):
        for name, text in pages.items():
            write_text(account.folder / name, text)
    return account


def html(account: Account) -> str:
    """Return the report as a self-contained page."""
    # Imported here because training does not need it.
    try:
        from plotly.offline import get_plotlyjs

        from distvae.sweeps.plots import sections
    except ImportError as error:
        raise UserError(f"a sweep report needs {error.name}: {INSTALL}") from None
    return render(
        "sweep_report.html",
        title=title(account),
        summary=summary(account),
        columns=columns(account),
        account=account,
        sections=sections(account),
        endings=endings(account),
        tables=[("By the clock", by_the_clock(account)), ("Of the slots", by_the_trials(account))],
        utilisation=utilisation(account),
        lineage=lineage(account),
        reading=reading(account),
        duration=format_duration,
        plotly=get_plotlyjs(),
    )


def markdown(account: Account) -> str:
    """Return the report as Markdown, without figures."""
    parts = [f"# {escaped(title(account))}", escaped(summary(account)), "## Trials"]
    shown = columns(account)
    if account.entries:
        parts.append(
            markdown_table(
                [c.title for c in shown], [[c.text(entry) or "–" for c in shown] for entry in account.entries]
            )
        )
    else:
        parts.append("No trial has started.")
    remark = by_elbo(account)
    if remark is not None:
        parts.append(remark)
    if endings(account):
        parts += ["## What failed or was stopped", "\n".join(f"- {escaped(line)}" for line in endings(account))]
    parts.append("## Where the time went")
    for title_, table in (("by the clock", by_the_clock(account)), ("of the slots", by_the_trials(account))):
        if table:
            rows = [[part.what, format_duration(part.seconds), f"{part.share:.0%}"] for part in table]
            parts.append(markdown_table([title_, "time", "share"], rows))
    if utilisation(account) is not None:
        parts.append(f"Trials held {utilisation(account):.0%} of the time of all slots while trials ran.")
    if lineage(account):
        rows = [[run, parent, f"{step:,}", values] for run, parent, step, values in lineage(account)]
        parts += ["## Lineage", markdown_table(["run", "continues", "at step", "with"], rows)]
    parts += ["## How to read this report", "\n".join(f"- {line}" for line in reading(account))]
    return "\n\n".join(parts) + "\n"


def title(account: Account) -> str:
    return f"Sweep {account.folder.resolve().name}"


def table(account: Account) -> Table:
    """Return the table of trials for a terminal."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns(account):
        shown.add_column(comparison.cell(column.title), justify="right")
    for entry in account.entries:
        style = None if entry.fine or not entry.judged else "dim"
        shown.add_row(*(comparison.cell(column.text(entry) or "–") for column in columns(account)), style=style)
    return shown


def as_dict(account: Account) -> dict[str, Any]:
    """Return plain values for JSON."""
    return {
        "folder": str(account.folder),
        "progress": asdict(account.progress),
        "trials": [
            {
                "rank": account.ranks.get(entry.number),
                **asdict(entry.trial),
                "epochs": entry.epochs,
                "outcome": _plain(entry.outcome) if isinstance(entry, ScoredTrial) else None,
                "within_tolerance": entry.within if isinstance(entry, ScoredTrial) else None,
                "latent": entry.outcome.latent if isinstance(entry, ScoredTrial) else None,
                "shortcomings": entry.shortcomings if isinstance(entry, ScoredTrial) else None,
                "front": entry.number in account.front,
                "finalist": {split: results_to_dict(results) for split, results in entry.finalist.items()},
                "runs": [str(generation.run.relative_to(account.folder)) for generation in entry.generations],
            }
            for entry in account.entries
        ],
        "utilisation": utilisation(account),
    }


def _plain(found: Outcome) -> dict[str, Any]:
    return {
        "epoch": found.epoch,
        "kl_weight": found.kl_weight,
        "target_rate": found.target_rate,
        "sentences": found.scores.sentences,
        **found.metrics,
    }


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def write_hparams(folder: Path, sweep: Sweep, trial: Trial) -> None:
    """Write the line of an ended trial for TensorBoard's HPARAMS tab to the folder of its last run.

    Replaces what an earlier call wrote.

    Raises:
        UserError: its records are damaged, or its folder cannot be written.
    """
    entry = read_trial(folder, sweep, trial)
    run = entry.generations[-1].run if entry.generations else folder / "trials" / f"{trial.number:04d}"
    objective = sweep.config.objective
    shown = [metric.key for metric in objective.shown]
    found: dict[str, float] = {}
    if isinstance(entry, ScoredTrial):
        found = {f"final/{key}": entry.outcome.metrics[key] for key in shown if key in entry.outcome.metrics}
        # Nats by which the constraints are missed.
        found["final/violation"] = entry.outcome.violation(objective)
    # Every line lists all keys and metrics, because TensorBoard takes its columns from the line that it reads first.
    texts = {key for key, dimension in sweep.config.space.items() if not dimension.numeric}
    whole = {key: "" if key in texts else 0.0 for key in sweep.config.space}
    values = {key: format_value(value) if key in texts else value for key, value in trial.values.items()}
    experiment, _, _ = summaries(whole, dict.fromkeys((f"final/{key}" for key in (*shown, "violation")), 0.0))
    _, start, end = summaries(values, found)
    if trial.state == "failed":
        _mark_failed(end)
    with writing(run):
        for generation in entry.generations or [Generation(run)]:
            remove_hparams(generation.run)
        step = entry.rows[-1].step if isinstance(entry, ScoredTrial) else 0
        write_session(run, (experiment, start, end), found, step)


def _mark_failed(end: Summary) -> None:
    """Mark a session as failed, because torch marks each as successful."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = end.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(data.content)
    content.session_end_info.status = Status.Value("STATUS_FAILURE")
    data.content = content.SerializeToString()
