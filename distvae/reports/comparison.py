"""The table that compares runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distvae.data.vocabulary import MANY_UNKNOWN
from distvae.evaluation.metrics import METRICS
from distvae.evaluation.scores import Scores
from distvae.runs.results import Results
from distvae.system.errors import printable
from distvae.system.plural import counted

# Rows that follow that of a metric.
_BELOW: dict[str, list[tuple[str, Callable[[Results], object]]]] = {
    "nll": [("floor under NLL, −log p*(x)", lambda r: r.floor and r.floor.nll)],
    "ppl": [("unknown words", lambda r: None if r.unknown is None else f"{r.unknown:.2%}")],
    "elbo_ppl": [("floor under PPL", lambda r: r.floor and r.floor.ppl)],
}


def table(results: dict[str, Results]) -> Table:
    """Return the table: a row for each metric, a column for each run."""
    splits = "/".join(dict.fromkeys(r.split for r in results.values()))
    shown = empty_table([f"{splits} sentences, in nats", *results])

    def row(title: str, values: list[object]) -> None:
        if any(value is not None for value in values):
            shown.add_row(title, *("–" if value is None else str(value) for value in values))

    for metric in METRICS.values():
        row(metric.heading, [metric.text(r.scores) for r in results.values()])
        for title, value in _BELOW.get(metric.key, []):
            row(title, [value(r) for r in results.values()])
    row("latent", [r.latent and r.latent.state for r in results.values()])
    return shown


def remarks(results: dict[str, Results]) -> list[str]:
    """Return the remarks and warnings to print under the table."""
    first = next(iter(results.values()))
    lines = [
        f"{name}: {counted(r.scores.sentences, 'sentence')}, {counted(r.scores.tokens, 'token')}; {_drawn(r.scores)};"
        f" vocabulary {r.vocabulary} of {r.vocabulary_size:,}{_tokenizer(r)}"
        for name, r in results.items()
    ]
    if len({line.partition(": ")[2] for line in lines}) == 1:
        lines = [lines[0].partition(": ")[2]]
    for name, r in results.items():
        if r.unknown is not None and r.unknown > MANY_UNKNOWN:
            lines.append(
                f"WARNING {name}: {r.unknown:.2%} of the words are unknown and are predicted as one class, so the PPL"
                " is not that of the text; a lower data.min_count, more text or another tokenisation leaves fewer"
            )
        if r.latent is not None and r.latent.state != "alive":
            lines.append(f"WARNING {name}: the latent is {r.latent.state}: {r.latent.advice}")
        for end in r.stages:
            if end.best_epoch is None:
                lines.append(
                    f"WARNING {name}: no epoch of {end.stage} qualified as the best (γ had not reached its end, the KL"
                    f" not its target, or the latent was hollow), so the last weights, of epoch {end.epochs}, were"
                    f" scored; try a higher {end.stage}.max_epochs, a shorter annealing (kl.anneal_epochs) or a lower"
                    " kl.target_rate"
                )
            elif not end.settled:
                lines.append(
                    f"WARNING {name}: {end.stage} keeps the weights of epoch {end.best_epoch} of {end.epochs}, because"
                    f" in {end.passed_over} later ones the validation KL was below its target; if γ swings, try smaller"
                    " steps of it, such as a smaller kl.multiplier of soft_free_bits"
                )
            elif not end.converged:
                lines.append(f"{name}: {end.stage} ended at its limit of {counted(end.epochs, 'epoch')}, not converged")
        if not r.scores.bound_holds:
            lines.append(
                f"WARNING {name}: NLL exceeds −ELBO by {r.scores.nll_excess}, which a correct estimate does not:"
                " use more importance samples; if that does not help, the model or the scores are wrong"
            )
    if any(r.vocabulary != first.vocabulary or r.data != first.data for r in results.values()):
        lines.append(
            "WARNING these runs have different data or vocabularies: their scores are not comparable. Of the same"
            " sentences by different tokenizers, nats per sentence and bits per character are, as far as no word is"
            " unknown"
        )
    return lines


def _tokenizer(results: Results) -> str:
    return "" if results.tokenizer is None else f" by data.tokenizer={results.tokenizer}"


def _drawn(scores: Scores) -> str:
    """Return how the scores depend on draws of z."""
    if scores.language_model:
        return "no z, so the NLL is exact"
    sampling = ""
    if scores.importance_samples:
        sampling = (
            f"NLL from K = {scores.importance_samples} importance samples, {scores.effective_samples:.0f} of them"
            " effective; "
        )
    return f"{sampling}draws by seed {scores.seed}; MI is at most ln {scores.sentences:,}"


def show(results: dict[str, Results]) -> None:
    """Print the table and its remarks."""
    print()
    show_parts([table(results), *remarks(results)])


def empty_table(titles: Iterable[str]) -> Table:
    """Return a table without rows. The first column is flush left, the others flush right."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, title in enumerate(titles):
        shown.add_column(cell(title), justify="right" if number else "left")
    return shown


def cell(text: object) -> Text:
    """Return text for a table on a terminal, which takes nothing in it for markup or a terminal code."""
    return Text(printable(text))


def show_parts(parts: Iterable[Table | str]) -> None:
    """Print tables, all of whose texts are ``cell``s, and lines."""
    # A file has no width to wrap at.
    width = None if sys.stdout.isatty() else 1000
    console = Console(file=sys.stdout, highlight=False, width=width)
    for part in parts:
        console.print(printable(part) if isinstance(part, str) else part, markup=False)
