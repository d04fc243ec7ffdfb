"""The tables of the aggregate posterior beside the prior."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from distvae.evaluation.aggregate import FAR
from distvae.evaluation.scores import Estimate, fixed
from distvae.reports.comparison import empty_table
from distvae.runs.aggregate import AggregatePosterior
from distvae.system.plural import counted

# Dimensions that have a row, those with the largest KL.
DIMENSIONS = 3


def parts(found: AggregatePosterior) -> Iterator[Table | str]:
    """Yield the tables and remarks."""
    yield _divergence(found)
    yield (
        f"q(z): the mixture of the posteriors of {counted(found.sentences, 'sentence')} of {found.split}; held out: of"
        f" the {found.train:,} of train; mixture: {counted(found.components, 'Gaussian')} fitted to train"
    )
    yield (
        "at most, at least: KL(q(z)‖p) of all sentences there might be is between the two, in expectation; MI is at"
        f" most ln {found.sentences:,}"
    )
    yield ""
    yield _draws(found)
    yield (
        f"far: q(z) of train is below that of all but {FAR:.0%} of the posterior draws"
        + (", a draw for each sentence of the split" if found.nll is None else "; PPL: by trigrams of train")
    )
    if found.nll is not None:
        yield ""
        yield _nll(found)
        if found.gain is not None:
            yield f"NLL under the prior − NLL under the mixture as the prior: {found.gain}"


def _divergence(found: AggregatePosterior) -> Table:
    """Return a row for each part of the KL."""
    shown, each = empty_table([f"{found.split} sentences, in nats", ""]), found.divergence
    rows = [
        ("KL(q(z|x)‖p)", each.kl),
        ("  mutual information", each.mutual_information),
        ("  total correlation", each.total_correlation),
        ("  Σ KL(q(z_d)‖p(z_d))", each.dimensions),
    ]
    largest = sorted(range(len(each.per_dimension)), key=lambda d: -each.per_dimension[d].mean)
    rows += [(f"    of dimension {d}", each.per_dimension[d]) for d in largest[:DIMENSIONS]]
    rows += [
        ("KL(q(z)‖p), at most", each.aggregate),
        ("KL(q(z)‖p), at least (held out)", each.held_out),
        ("KL(q(z)‖p) − KL(q(z)‖mixture)", found.closer),
    ]
    for title, value in rows:
        shown.add_row(title, str(value))
    return shown


def _draws(found: AggregatePosterior) -> Table:
    """Return a row for each kind of draws."""
    decoded = found.nll is not None
    shown = empty_table(["draws of z", "number", "far from q(z), in %", *["PPL of their sentences"] * decoded])
    titles = {
        "posterior": f"posterior, {found.split}", "prior": "prior", "prior, far": "  those far",
        "prior, near": "  the others", "mixture": "mixture", "sentences": f"sentences of {found.split}",
    }  # fmt: skip
    for kind, title in titles.items():
        if (each := found.draws.get(kind)) is not None and (decoded or each.far is not None):
            far = "" if each.far is None else each.far.percent
            shown.add_row(title, f"{each.count:,}", far, *[_optional(each.forward_ppl)] * decoded)
    return shown


def _nll(found: AggregatePosterior) -> Table:
    """Return a row for each number of importance samples."""
    curves = found.nll or {}
    shown = empty_table(["NLL from K samples", *(title for kind in curves for title in (kind, "effective"))])
    for rows in zip(*curves.values(), strict=True):
        values = [text for bound in rows for text in (str(bound.nll), fixed(bound.effective, 1))]
        shown.add_row(f"K = {rows[0].samples:,}", *values)
    return shown


def _optional(value: Estimate | None) -> str:
    return "–" if value is None else str(value)
