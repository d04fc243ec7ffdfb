"""The field's report: the table of all methods, their learning curves and their runs; and ``report.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from distvae.evaluation.metrics import METRICS
from distvae.reports import field_figure, knowledge, overview
from distvae.reports.document import Line, Mark, Part, Report
from distvae.reports.field import Row, Verdict, language_model, rank
from distvae.reports.knowledge import Knowledge
from distvae.reports.methods import Method, PerSentence, Score
from distvae.reports.overview import shown
from distvae.reports.paper_report import reconstructions
from distvae.runs.checkpoints import load_export

_HEADER = [
    "method", "rank", METRICS["nll"].title, "gain over the LM", "z pays", "latent", METRICS["kl"].title,
    METRICS["mutual_information"].title, METRICS["active_units"].title, "KL(q(z)‖p)", METRICS["neg_elbo"].title, "gap",
    METRICS["ppl"].title, "seeds", "hours",
]  # fmt: skip

_PAYS: dict[Verdict, Mark] = {"yes": "good", "no": "bad", "too close to tell": "verdict"}

# Scores that are in ``report.csv`` and in JSON, with their errors.
_SCORES: tuple[PerSentence, ...] = ("nll", "re", "kl", "mutual_information", "marginal_kl", "neg_elbo", "gap")

_NOTES = (
    "rank: 1 + the number of methods whose NLL is lower by more than 2 standard errors of the difference, sentence by"
    " sentence.",
    "NLL with a latent variable: importance weighted, in expectation at most −ELBO and at least the true one. That of"
    " the language model (LM) is exact. Gain over the LM: its NLL minus the method's, sentence by sentence. z pays: yes"
    " if the gain is more than 2 of its standard errors above 0, no if as much below.",
    "MI: mutual information of sentence and latent variable. KL(q(z)‖p) = KL − MI: what the KL spends without"
    " distinguishing sentences. gap = −ELBO − NLL: what the bound loses. AU: units whose posterior mean has a variance"
    " above 0.01 over the sentences.",
    "latent: dead, MI below 0.3; hollow, less than half of the KL is information; weak, MI below half of λ; otherwise"
    " alive. hours: training and validation of a run with its pretraining, without the test; runs side by side share a"
    " machine.",
)


def make_report(methods: list[Method], sentences: Sequence[str] = ()) -> Report:
    """Compare methods, ranked by NLL.

    Args:
        sentences: to reconstruct by each method; empty: none.
    """
    rows = rank(methods)
    ordered = [row.method for row in rows]
    text = f"{overview.about_scores(methods)} Of a gain, {overview.about_differences(methods)}"
    known = knowledge.gather(ordered)
    latents = knowledge.part(ordered, known)
    missing = () if latents else known.notes
    notes = (*_notes(methods), *missing, *_NOTES, *overview.warnings(methods))
    parts = [Part("Methods", text, _HEADER, list(map(_line, rows)), notes, numbers=True)]
    parts += [] if latents is None else [latents]
    main_parts = len(parts)
    figure = field_figure.draw(ordered, language_model(methods))
    parts += [Part("Learning curves", figure=figure)] if figure else []
    decoding = [method for method in ordered if method.finished and not method.config.language_model]
    if sentences and decoding:
        exports = [load_export(method.finished[0].folder) for method in decoding]
        parts.append(reconstructions([method.name for method in decoding], exports, sentences))
    parts.append(overview.runs(ordered))
    values = [_values(row, known) for row in rows]
    return Report(
        "The field's methods, compared",
        overview.summary(methods),
        parts,
        main_parts,
        {"methods": values},
        {"report.csv": _csv(values)},
    )


def _line(row: Row) -> Line:
    method, config = row.method, row.method.config
    seeds = f"{len(method.finished)}" + ("" if len(method.finished) == len(method.runs) else f" of {len(method.runs)}")
    if not method.finished:
        return Line([method.name, *["–"] * (len(_HEADER) - 3), seeds, "–"], aside=True)
    latent = not config.language_model
    bound = latent and not config.autoencoder

    def score(name: PerSentence, has: bool = True) -> str:
        return shown(method.score(name) if has else None)

    cells = [
        method.name, shown(row.rank), score("nll"), _gain(row), shown(row.pays),
        shown(row.state) if latent else "no z", score("kl", latent), score("mutual_information", latent),
        overview.units(method) if latent else "–", score("marginal_kl", bound), score("neg_elbo", bound),
        score("gap", bound), shown(method.perplexity("nll")), seeds, shown(row.hours),
    ]  # fmt: skip
    marks: dict[int, Mark] = {}
    if row.pays is not None:
        marks[_HEADER.index("z pays")] = _PAYS[row.pays]
    if row.alive is not None:
        marks[_HEADER.index("latent")] = "good" if row.alive else "bad"
    return Line(cells, aside=row.rank is None or config.language_model, marks=marks)


def _gain(row: Row) -> str:
    if row.gain is None:
        return "–"
    return ("+" if row.gain.mean > 0 else "") + str(row.gain).replace("-", "−")


def _notes(methods: Sequence[Method]) -> list[str]:
    """Return what is missing from the comparison."""
    notes = []
    models = [method for method in methods if method.config.language_model]
    baseline = language_model(methods)
    if baseline is None:
        why = "has not finished" if models else "is missing: train one with model.latent_size=0"
        notes.append(f"The language model {why}; without it there are no gains.")
    elif len(models) > 1:
        notes.append(f"Gains are over {baseline.name}, which has the lowest NLL of the {len(models)} language models.")
    seeds = {method.name: {run.config.seed for run in method.finished} for method in methods if method.finished}
    most = set().union(*seeds.values())
    for name, own in seeds.items():
        if own != most:
            missing = ", ".join(map(str, sorted(most - own)))
            notes.append(f"{name} lacks seed {missing}, which other methods have: its means are over fewer runs.")
    return notes


def _values(row: Row, known: Knowledge) -> dict[str, Any]:
    """Return a row as plain values: scores in nats, their standard errors and their standard deviations over seeds; and
    what z knows."""
    method = row.method
    found: dict[str, Any] = {"rank": row.rank, "method": method.name}
    scores: dict[str, Score | None] = {name: method.score(name) if method.finished else None for name in _SCORES}
    scores["ppl"] = method.perplexity("nll") if method.finished else None
    if row.gain is not None:
        scores["gain"] = Score(row.gain.mean, row.gain.standard_error, None)
    for name in ("nll", "gain", "ppl", *_SCORES[1:]):
        score = scores.get(name)
        found[name], found[f"{name}_error"] = (None, None) if score is None else (score.mean, score.error)
        if name != "gain":
            found[f"{name}_spread"] = None if score is None else score.spread
    units = [run.results.scores.active_units for run in method.finished]
    return found | {
        "active_units": sum(units) / len(units) if units else None,
        "pays": row.pays,
        "latent": row.state,
        "hours": row.hours,
        **knowledge.values(method, known),
        "seeds": [run.config.seed for run in method.finished],
        "runs": [str(run.folder) for run in method.runs],
    }


def _csv(values: list[dict[str, Any]]) -> str:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(values[0]), lineterminator="\n")
    writer.writeheader()
    for row in values:
        lists = {key: " ".join(map(str, value)) for key, value in row.items() if isinstance(value, list)}
        writer.writerow(row | lists)
    return sink.getvalue()
