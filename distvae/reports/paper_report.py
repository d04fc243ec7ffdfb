"""The paper's Table 1, Figure 2 and Table 2 from run folders, and its claims: ``report.html`` and ``report.md``."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distvae.config.schema import CAPTIONS
from distvae.data import captions
from distvae.data.vocabulary import join, tokenize
from distvae.evaluation.generation import Decoding, decode, interpolation, posterior_means, prior_draws
from distvae.reports.comparison import cell
from distvae.reports.methods import Method, Run, gather
from distvae.reports.pages import render
from distvae.reports.paper import TABLE_1, Claim, claims, corrected
from distvae.runs.checkpoint import Export, load_export
from distvae.system.errors import UserError, printable
from distvae.system.files import write_bytes, write_text, writing
from distvae.system.markdown import escaped, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "figure2.svg"

# Told apart by the colour-blind; in the paper's order of methods.
_COLOURS = {"KLA": "#7a7a7a", "PT + KLA": "#c2437f", "PT + KLA + FB": "#d9772b", "PT + KLA + SFB": "#2a7fb8"}
_MORE_COLOURS = ("#1a9e6b", "#8a5fbf", "#a8870f", "#222222")

# Of Table 2: whose draws are the ends of its lines, and how many sentences a line has.
_LINES, _STEPS = (0, 1), 11

# Seeds captions that no run's data.seed draws.
_FRESH = 2**31

# What is reconstructed where nothing else is asked for: in no corpus, in words that are in many.
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
    aside: bool = False  # what it is set against


@dataclass(frozen=True)
class Part:
    """A section of the report."""

    title: str
    text: str = ""
    header: list[str] | None = None
    lines: Sequence[Line] = ()
    notes: tuple[str, ...] = ()
    figure: str | None = None  # what it shows


@dataclass(frozen=True)
class Report:
    """What the pages tell."""

    title: str
    summary: str
    parts: list[Part]
    claims: list[Claim]
    figure: bytes  # SVG


def write(folders: Sequence[str | Path], target: str | Path, sentences: Sequence[str] = ()) -> Report:
    """Write ``report.html``, which needs nothing beside itself, ``report.md`` and its figure into a folder.

    Args:
        folders: of runs.
        sentences: to reconstruct; none: some that are built in.

    Raises:
        UserError: a folder is no run's, is damaged, or the pages cannot be written.
    """
    report, target = tell(folders, sentences), Path(target)
    pages = {"report.md": markdown(report), "report.html": html(report)}
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        write_bytes(target / FIGURE, report.figure)
        for name, text in pages.items():
            write_text(target / name, text)
    return report


def tell(folders: Sequence[str | Path], sentences: Sequence[str] = ()) -> Report:
    """What runs tell of the paper's methods."""
    methods = gather(folders)
    found = claims(methods)
    shown = [method for method in methods if method.finished]
    heads = ["", *(method.name for method in shown)]
    exports = [load_export(method.finished[0].folder) for method in shown]
    parts = [
        Part("Table 1", _about_table(methods), _TABLE_HEADER, _table(methods), tuple(_table_notes(methods))),
        Part(
            "What the paper claims",
            _about_claims(methods),
            ["claim", "verdict", "by these figures"],
            [_claim(one) for one in found],
        ),
        Part("Figure 2", figure=_FIGURE_TEXT),
        Part("Table 2", _INTERPOLATION_TEXT, heads, _interpolations(exports)),
        Part("Reconstructions", _RECONSTRUCTION_TEXT, heads, _rebuilt(exports, sentences)),
        Part("The runs", "", _RUN_HEADER, [_run(method, run) for method in methods for run in method.runs]),
    ]
    parts = [part for part in parts if part.figure or part.lines]
    return Report("The paper's methods, compared", _summary(methods), parts, found, _figure(methods))


# -- The pages ---------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """``report.md``, which shows the figure beside it."""
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
    """``report.html``."""
    image = "data:image/svg+xml;base64," + base64.b64encode(report.figure).decode("ascii")
    return render("paper_report.html", report=report, image=image)


def as_dict(report: Report) -> dict[str, Any]:
    """Plain values for JSON."""
    tables = {part.title: [part.header, *(line.cells for line in part.lines)] for part in report.parts if part.header}
    return {"summary": report.summary, "claims": [asdict(claim) for claim in report.claims], "tables": tables}


def tables(report: Report) -> list[Table | str]:
    """Table 1 and the claims, for a terminal."""
    shown: list[Table | str] = [""]
    for part in report.parts[:2]:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, head in enumerate(part.header):
            table.add_column(cell(head), justify="right" if part.title == "Table 1" and number else "left")
        for line in part.lines:
            table.add_row(*map(cell, line.cells), style="dim" if line.aside else None)
        shown += [table, part.text, ""]
    return shown


# -- Table 1 -----------------------------------------------------------------------------------------------------------

_TABLE_HEADER = ["method", "NLL", "PPL", "RE", "KL", "−ELBO", "ELBO PPL", "AU", "MI", "ESS"]


def _summary(methods: list[Method]) -> str:
    finished = [run for method in methods for run in method.finished]
    count = sum(len(method.runs) for method in methods)
    said = f"{len(finished)} of {count} runs have finished. " if len(finished) < count else f"{count} runs. "
    if not finished:
        return said.strip()
    results = finished[0].results
    samples = sorted({run.results.scores.importance_samples for run in finished} - {0})
    return (
        f"{said}{results.scores.sentences:,} {results.split} sentences, {results.scores.tokens:,} tokens; vocabulary"
        f" {results.vocabulary} of {results.vocabulary_size:,}"
        + ("" if results.unknown is None else f", {results.unknown:.2%} of the words unknown")
        + f"; sentences {results.data}"
        + (f"; NLL from K = {', '.join(map(str, samples))} importance samples." if samples else ".")
    )


def _about_table(methods: list[Method]) -> str:
    several = any(len(method.finished) > 1 for method in methods)
    spread = "; in brackets the standard deviation over seeds" if several else ""
    return f"In nats a sentence, ± standard error over sentences{spread}."


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
    effective = [scores.effective_samples for scores in results]
    units = method.over_seeds([scores.active_units for scores in results])
    return [
        _said(method.score("nll")),
        _said(method.perplexity("nll")),
        _said(method.score("re")),
        _said(method.score("kl")),
        "–" if autoencoder else _said(method.score("neg_elbo")),
        "–" if autoencoder else _said(method.perplexity("neg_elbo")),
        f"{units.mean:g} of {len(results[0].kl_per_dimension)}" + _bracketed(units.spread, ".1f"),
        _said(method.score("mutual_information")),
        "–" if None in effective else f"{sum(effective) / len(effective):.0f}",
    ]


def _printed(kind: str) -> list[Line]:
    row = TABLE_1[kind]
    right = corrected(row)
    printed = [row.nll, row.ppl, row.re, row.kl, row.neg_elbo, row.elbo_ppl]
    lines = [Line(["paper, as printed", *map(_said, printed), "–", "–", "–"], aside=True)]
    if right.nll is not None:
        bounds = [f"{low:.2f} to {high:.2f}" for low, high in (right.nll, right.ppl)]
        lines.append(Line(["paper, corrected", *bounds, *map(_said, printed[2:]), "–", "–", "–"], aside=True))
    else:
        lines.append(Line(["paper, corrected", "–", "–", _said(right.re), *("–",) * 6], aside=True))
    return lines


def _said(value: object) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _bracketed(spread: float | None, form: str) -> str:
    return "" if spread is None else f" ({spread:{form}})"


def _table_notes(methods: list[Method]) -> list[str]:
    notes = [
        "NLL: importance weighted, at most −ELBO in expectation. PPL, ELBO PPL: exp of NLL and −ELBO a token, words and"
        " the end of the sentence. AU: units whose posterior mean varies over the sentences by more than 0.01. MI:"
        " mutual information of sentence and latent variable, which is what tells a living one from a dead one. ESS:"
        " effective number of the importance samples. The autoencoder's z has no prior: its KL is no cost, and"
        " it has no −ELBO and no NLL.",
        "The paper's corpus, vocabulary and batches are others, so its figures are to be compared among each other."
        " Corrected: its program joined importance samples with other sentences' prefixes, four in turn, so that NLL"
        " is too high by up to ln 4, and no NLL is above −ELBO; the autoencoder's RE is of a batch of four.",
    ]
    for method in methods:
        for run in method.finished:
            if not run.results.scores.bound_holds:
                excess = run.results.scores.nll_excess
                notes.append(f"WARNING {run.folder}: NLL stands above −ELBO by {excess}, which no right estimate does.")
    return notes


def _about_claims(methods: list[Method]) -> str:
    text = "± is a standard error over sentences, and over seeds where there are several."
    if any(len(method.finished) == 1 for method in methods):
        text += " Of one seed, how far off another would lie is in no error here."
    return text


def _claim(claim: Claim) -> Line:
    return Line([claim.text, claim.verdict, claim.figures], aside=claim.verdict == "no runs")


# -- Figure 2 ----------------------------------------------------------------------------------------------------------

_FIGURE_TEXT = (
    "Validation KL, mutual information and the weight γ of the KL term by epoch of the VAE; a line is a run, a dot the"
    " epoch whose weights were scored. Dashed: λ. Dotted: where annealing ends."
)


def _figure(methods: list[Method]) -> bytes:
    try:  # late, for it takes a second
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the paper's report needs matplotlib: pip install -e '.[report]' in the checkout") from None
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    drawn = [method for method in methods if method.kind != "AE"]
    more = iter(_MORE_COLOURS * len(methods))
    for method in drawn:
        first = next(other for other in drawn if other.kind == method.kind) is method
        colour = _COLOURS[method.kind] if first and method.kind in _COLOURS else next(more)
        for number, run in enumerate(method.runs):
            _draw(axes, run, colour, method.name if number == 0 else None)
    for name, panel in zip(("validation KL, nats", "validation MI, nats", "γ"), axes, strict=True):
        panel.set_ylabel(name)
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e6e6e6")
        panel.set_axisbelow(True)
        for epochs in sorted({method.runs[0].config.kl.policy.warm_up for method in drawn} - {0}):
            panel.axvline(epochs + 0.5, color="#9a9a9a", linestyle=":", linewidth=1)
    for rate in sorted({method.runs[0].config.kl.rate for method in drawn} - {None}):
        axes[0].axhline(rate, color="#444444", linestyle="--", linewidth=1)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    if drawn:
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
    sink = io.BytesIO()
    # Text stays text; and the same runs give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "distvae", "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()


def _draw(axes: Sequence[Axes], run: Run, colour: str, label: str | None) -> None:
    epochs = [row["epoch"] for row in run.vae]
    columns = (
        [row["valid"]["kl"]["mean"] for row in run.vae],
        [row["valid"]["mutual_information"]["mean"] for row in run.vae],
        [row["kl_weight"] for row in run.vae],
    )
    best = None if run.results is None else run.results.stages[-1].best_epoch
    for panel, values in zip(axes, columns, strict=True):
        # What stands between dollars would be taken for mathematics.
        panel.plot(epochs, values, color=colour, linewidth=1.4, label=label and printable(label).replace("$", "\\$"))
        if best in epochs:
            panel.plot([best], [values[epochs.index(best)]], "o", color=colour, markersize=5)
        label = None  # one of the panels names it


# -- Table 2 -----------------------------------------------------------------------------------------------------------

_INTERPOLATION_TEXT = (
    "Greedy decodings along lines from one draw of the prior to another, the same draws for all; of each method's first"
    " run."
)
_RECONSTRUCTION_TEXT = "Greedy decodings of the sentences' posterior means; of each method's first run."


def _interpolations(exports: list[Export]) -> list[Line]:
    columns = []
    for found in exports:
        model = found.model("cpu")
        lines = [interpolation(*prior_draws(model, 2, seed), _STEPS) for seed in _LINES]
        decoded = [decode(model, line, found.vocabulary, Decoding()) for line in lines]
        columns.append([sentence for sentences in decoded for sentence in [*sentences, ""]][:-1])
    steps = [*map(str, range(1, _STEPS + 1)), ""] * len(_LINES)
    return [Line([step, *cells]) for step, cells in zip(steps, zip(*columns, strict=True), strict=False)]


def _rebuilt(exports: list[Export], sentences: Sequence[str]) -> list[Line]:
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
    return Line(cells, aside=run.results is None)


def _stage(run: Run, name: str) -> str:
    if name == "pretrain" and run.config.pretrained is not None:
        return f"of {Path(run.config.pretrained).name}"
    if getattr(run.config, name).max_epochs == 0:
        return "–"
    rows = [row for row in run.epochs if row["stage"] == name]
    ended = [] if run.results is None else [end for end in run.results.stages if end.stage == name]
    if not ended:
        return f"{len(rows)} epochs so far" if rows else "not begun"
    return f"{ended[0].epochs} epochs, " + ("converged" if ended[0].converged else "the limit")


def _best(run: Run) -> str:
    if run.results is None:
        return "–"
    best = run.results.stages[-1].best_epoch
    return "the last epoch: none could be the best" if best is None else f"epoch {best}"


def _machine(run: Run) -> str:
    made = run.environment
    return f"{made.processes}, {made.device}; torch {made.packages.get('torch', '–')}, Python {made.python}"
