"""Reproduce the paper's tables and figure from run folders, and judge its claims: ``report.html``, ``report.md``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distvae.config.schema import CAPTIONS
from distvae.data import captions
from distvae.data.vocabulary import join, tokenize
from distvae.evaluation.generation import Decoding, decode, interpolation, posterior_means, prior_draws
from distvae.evaluation.metrics import METRICS
from distvae.reports import paper_figure
from distvae.reports.comparison import cell
from distvae.reports.methods import FinishedRun, Method, Run, gather
from distvae.reports.pages import render
from distvae.reports.paper import TABLE_1, Claim, claims, corrected
from distvae.runs.checkpoints import Export, load_export
from distvae.system.files import write_bytes, write_text, writing
from distvae.system.markdown import escaped, markdown_table

FIGURE = "figure2.svg"

# The interpolations of Table 2: a seed for the ends of each, and the number of sentences of each.
_LINES, _STEPS = (0, 1), 11

# Seed of captions, beyond the values of data.seed.
_FRESH = 2**31

# Default sentences to reconstruct: in no corpus, but of common words.
SENTENCES = (
    "A man is playing a guitar on the street .",
    "Two dogs are running through the snow .",
    "A little girl in a red dress is eating ice cream .",
    "The people are waiting for a train .",
    "A woman is reading a book in the park .",
)


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    cells: list[str]
    aside: bool = False  # shown for comparison, in grey


@dataclass(frozen=True)
class Part:
    """A section of the report."""

    title: str
    text: str = ""
    header: list[str] | None = None
    lines: Sequence[Line] = ()
    notes: tuple[str, ...] = ()
    figure: str | None = None  # caption of the figure


@dataclass(frozen=True)
class Report:
    """The content of the pages."""

    title: str
    summary: str
    parts: list[Part]
    claims: list[Claim]
    figure: bytes  # SVG


def write(folders: Sequence[str | Path], target: str | Path, sentences: Sequence[str] = ()) -> Report:
    """Write ``report.html``, which is self-contained, and ``report.md`` with its figure to a folder.

    Args:
        folders: run folders.
        sentences: to reconstruct; empty: built-in ones.

    Raises:
        UserError: a folder is not a run folder or is damaged, or the pages cannot be written.
    """
    report, target = make_report(folders, sentences), Path(target)
    pages = {"report.md": markdown(report), "report.html": html(report)}
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        write_bytes(target / FIGURE, report.figure)
        for name, text in pages.items():
            write_text(target / name, text)
    return report


def make_report(folders: Sequence[str | Path], sentences: Sequence[str] = ()) -> Report:
    """Compare runs of the paper's methods."""
    methods = gather(folders)
    found = claims(methods)
    shown = [method for method in methods if method.finished]
    with_latent = [method for method in shown if not method.runs[0].config.language_model]
    heads = ["", *(method.name for method in with_latent)]
    exports = [load_export(method.finished[0].folder) for method in with_latent]
    parts = [
        Part("Table 1", _about_table(methods), _TABLE_HEADER, _table(methods), tuple(_table_notes(methods))),
        Part(
            "What the paper claims",
            _about_claims(methods),
            ["claim", "verdict", "figures"],
            [Line([one.text, one.verdict, one.figures], aside=one.verdict == "no runs") for one in found],
        ),
        Part("Figure 2", figure=paper_figure.CAPTION),
        Part("Table 2", _INTERPOLATION_TEXT, heads, _interpolations(exports)),
        Part("Reconstructions", _RECONSTRUCTION_TEXT, heads, _reconstructions(exports, sentences)),
        Part("The runs", "", _RUN_HEADER, [_run(method, run) for method in methods for run in method.runs]),
    ]
    parts = [part for part in parts if part.figure or part.lines]
    return Report("The paper's methods, compared", _summary(methods), parts, found, paper_figure.draw(methods))


def markdown(report: Report) -> str:
    """Return the text of ``report.md``, which refers to the figure beside it."""
    blocks = [f"# {report.title}", escaped(report.summary)]
    for part in report.parts:
        blocks += [f"## {part.title}", part.text]
        if part.figure:
            blocks += [f"![{part.title}]({FIGURE})", part.figure]
        if part.header:
            blocks.append(markdown_table(part.header, [line.cells for line in part.lines]))
        blocks.append("\n".join(f"- {escaped(note)}" for note in part.notes))
    return "\n\n".join(block for block in blocks if block) + "\n"


def html(report: Report) -> str:
    """Return the text of ``report.html``, which contains the figure."""
    image = "data:image/svg+xml;base64," + base64.b64encode(report.figure).decode("ascii")
    return render("paper_report.html", report=report, image=image)


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as plain values for JSON."""
    tables = {part.title: [part.header, *(line.cells for line in part.lines)] for part in report.parts if part.header}
    return {"summary": report.summary, "claims": [asdict(claim) for claim in report.claims], "tables": tables}


def tables(report: Report) -> list[Table | str]:
    """Return Table 1 and the claims for a terminal."""
    shown: list[Table | str] = [""]
    for part in report.parts[:2]:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, head in enumerate(part.header or ()):
            table.add_column(cell(head), justify="right" if part.title == "Table 1" and number else "left")
        for line in part.lines:
            table.add_row(*map(cell, line.cells), style="dim" if line.aside else None)
        shown += [table, part.text, ""]
    return shown


# -- Table 1 -----------------------------------------------------------------------------------------------------------

# The metrics of Table 1, and then those that the paper does not give.
_COLUMNS = ("nll", "ppl", "re", "kl", "neg_elbo", "elbo_ppl", "active_units", "mutual_information")
_TABLE_HEADER = ["method", *(METRICS[key].title for key in _COLUMNS), "ESS"]


def _summary(methods: list[Method]) -> str:
    finished = [run for method in methods for run in method.finished]
    count = sum(len(method.runs) for method in methods)
    number = f"{len(finished)} of {count} runs have finished. " if len(finished) < count else f"{count} runs. "
    if not finished:
        return number.strip()
    results = finished[0].results
    samples = sorted({run.results.scores.importance_samples for run in finished} - {0})
    return (
        f"{number}{results.scores.sentences:,} {results.split} sentences, {results.scores.tokens:,} tokens; vocabulary"
        f" {results.vocabulary} of {results.vocabulary_size:,}"
        + ("" if results.unknown is None else f", {results.unknown:.2%} of the words unknown")
        + f"; sentences {results.data}"
        + (f"; NLL from K = {', '.join(map(str, samples))} importance samples." if samples else ".")
    )


def _about_table(methods: list[Method]) -> str:
    several = any(len(method.finished) > 1 for method in methods)
    spread = "; in parentheses: standard deviation over seeds" if several else ""
    return f"In nats per sentence, ± standard error over sentences{spread}."


def _table(methods: list[Method]) -> list[Line]:
    lines, seen = [], set()
    for method in methods:
        lines.append(Line([method.name, *(("–",) * 9 if not method.finished else _scores(method))]))
        if method.kind in TABLE_1 and method.kind not in seen:
            seen.add(method.kind)
            lines += _printed(method.kind)
    return lines


def _scores(method: Method) -> list[str]:
    results = [run.results.scores for run in method.finished]
    autoencoder = method.runs[0].config.autoencoder
    effective = [scores.effective_samples for scores in results if scores.effective_samples is not None]
    units = method.over_seeds([scores.active_units for scores in results])
    return [
        _shown(method.score("nll")),
        _shown(method.perplexity("nll")),
        _shown(method.score("re")),
        _shown(method.score("kl")),
        "–" if autoencoder else _shown(method.score("neg_elbo")),
        "–" if autoencoder else _shown(method.perplexity("neg_elbo")),
        f"{units.mean:g} of {len(results[0].kl_per_dimension)}" + _bracketed(units.spread, ".1f"),
        _shown(method.score("mutual_information")),
        f"{sum(effective) / len(effective):.0f}" if len(effective) == len(results) else "–",
    ]


def _printed(kind: str) -> list[Line]:
    row = TABLE_1[kind]
    better = corrected(row)
    printed = [row.nll, row.ppl, row.re, row.kl, row.neg_elbo, row.elbo_ppl]
    lines = [Line(["paper, as printed", *map(_shown, printed), "–", "–", "–"], aside=True)]
    if better.nll is not None and better.ppl is not None:
        bounds = [f"{low:.2f} to {high:.2f}" for low, high in (better.nll, better.ppl)]
        lines.append(Line(["paper, corrected", *bounds, *map(_shown, printed[2:]), "–", "–", "–"], aside=True))
    else:
        lines.append(Line(["paper, corrected", "–", "–", _shown(better.re), *("–",) * 6], aside=True))
    return lines


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _bracketed(spread: float | None, form: str) -> str:
    return "" if spread is None else f" ({spread:{form}})"


def _table_notes(methods: list[Method]) -> list[str]:
    notes = [
        "NLL: importance weighted, at most −ELBO in expectation. PPL, ELBO PPL: exp of NLL and −ELBO per token; tokens"
        " are words and the end of the sentence. AU: units whose posterior mean has a variance above 0.01 over the"
        " sentences. MI: mutual information of sentence and latent variable, which decides whether it is alive. ESS:"
        " effective number of importance samples. The autoencoder's z has no prior: its KL is not a cost, and it has"
        " neither −ELBO nor NLL.",
        "The paper has another corpus, vocabulary and batch size, so compare its rows with each other only. Corrected:"
        " its program combined importance samples with prefixes of other sentences, in batches of four, so its NLL is"
        " too high by up to ln 4; an NLL cannot exceed −ELBO; the autoencoder's RE is that of a batch of four.",
    ]
    for method in methods:
        for run in method.finished:
            if not run.results.scores.bound_holds:
                excess = run.results.scores.nll_excess
                notes.append(f"WARNING {run.folder}: NLL exceeds −ELBO by {excess}, which a correct estimate does not.")
    return notes


def _about_claims(methods: list[Method]) -> str:
    text = "±: standard error over sentences, and over seeds if a method has several."
    if any(len(method.finished) == 1 for method in methods):
        text += " With one seed, the errors do not include how much another seed would differ."
    return text


# -- Table 2 -----------------------------------------------------------------------------------------------------------

_INTERPOLATION_TEXT = (
    "Greedy decodings along lines between two draws from the prior, the same for all methods, by each method's first"
    " run."
)
_RECONSTRUCTION_TEXT = "Greedy decodings of the sentences' posterior means, by each method's first run."


def _interpolations(exports: list[Export]) -> list[Line]:
    columns = []
    for found in exports:
        model = found.model("cpu")
        ends = [prior_draws(model, 2, seed) for seed in _LINES]
        lines = [interpolation(start, end, _STEPS) for start, end in ends]
        decoded = [decode(model, line, found.vocabulary, Decoding()) for line in lines]
        columns.append([sentence for sentences in decoded for sentence in [*sentences, ""]][:-1])
    steps = [*map(str, range(1, _STEPS + 1)), ""] * len(_LINES)
    return [Line([step, *cells]) for step, cells in zip(steps, zip(*columns, strict=True), strict=False)]


def _reconstructions(exports: list[Export], sentences: Sequence[str]) -> list[Line]:
    columns = []
    for found in exports:
        if not sentences:
            drawn = found.config.data.path == CAPTIONS
            sentences = [join(words) for words in captions.generate(5, _FRESH)] if drawn else SENTENCES
        model = found.model("cpu")
        ids = [found.vocabulary.encode(tokenize(sentence)) for sentence in sentences]
        columns.append(decode(model, posterior_means(model, ids, found.vocabulary.pad), found.vocabulary, Decoding()))
    return [Line(list(cells)) for cells in zip(sentences, *columns, strict=True)] if columns else []


# -- The runs ----------------------------------------------------------------------------------------------------------

_RUN_HEADER = ["run", "method", "seed", "pretraining", "VAE", "scored", "hours", "trained on", "commit"]


def _run(method: Method, run: Run) -> Line:
    commit = (run.environment.commit or "–")[:12]
    cells = [
        str(run.folder), method.name, str(run.config.seed), _stage(run, "pretrain"), _stage(run, "train"), _best(run),
        f"{run.hours:.2f}", _machine(run), commit,
    ]  # fmt: skip
    return Line(cells, aside=not isinstance(run, FinishedRun))


def _stage(run: Run, name: str) -> str:
    if name == "pretrain" and run.config.pretrained is not None:
        return f"from {Path(run.config.pretrained).name}"
    if getattr(run.config, name).max_epochs == 0:
        return "–"
    rows = [row for row in run.epochs if row.stage == name]
    ended = [end for end in run.results.stages if end.stage == name] if isinstance(run, FinishedRun) else []
    if not ended:
        return f"{len(rows)} epochs so far" if rows else "not started"
    return f"{ended[0].epochs} epochs, " + ("converged" if ended[0].converged else "its limit")


def _best(run: Run) -> str:
    if not isinstance(run, FinishedRun):
        return "–"
    best = run.results.stages[-1].best_epoch
    return "the last epoch: none qualified as the best" if best is None else f"epoch {best}"


def _machine(run: Run) -> str:
    found = run.environment
    return f"{found.processes}, {found.device}; torch {found.packages.get('torch', '–')}, Python {found.python}"
