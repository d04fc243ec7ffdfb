"""The paper's tables and figure from runs of its methods, and its claims, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from distvae.config.schema import CAPTIONS
from distvae.data import captions
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.encoding import encode
from distvae.evaluation.generation import decode, interpolation, prior_draws
from distvae.evaluation.metrics import METRICS
from distvae.reports import knowledge, overview, paper_figure
from distvae.reports.document import Figure, Line, Mark, Part, Report
from distvae.reports.methods import Method
from distvae.reports.overview import shown
from distvae.reports.paper import TABLE_1, Claim, Verdict, claims, corrected
from distvae.runs.checkpoints import Export, load_export

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


def make_report(methods: list[Method], sentences: Sequence[str] = ()) -> Report:
    """Compare runs of the paper's methods.

    Args:
        sentences: to reconstruct; empty: built-in ones.
    """
    found = claims(methods)
    exports = [load_export(method.finished[0].folder) for method in methods if method.finished]
    names = [method.name for method in methods if method.finished]
    known = knowledge.gather(methods)
    latents = knowledge.part(methods, known)
    notes = (*_NOTES, *(() if latents else known.notes), *overview.warnings(methods))
    parts = [
        Part("Table 1", overview.about_scores(methods), _TABLE_HEADER, _table(methods), notes, numbers=True),
        *([latents] if latents else []),
        Part(
            "What the paper claims", overview.about_differences(methods), ["claim", "verdict", "figures"],
            list(map(_claim, found)),
        ),
        Part("Figure 2", figure=Figure("figure2.svg", paper_figure.draw(methods), paper_figure.CAPTION)),
        Part("Table 2", _INTERPOLATION_TEXT, ["", *names], _interpolations(exports)),
        reconstructions(names, exports, sentences),
        overview.runs(methods),
    ]  # fmt: skip
    parts = [part for part in parts if part.figure or part.lines]
    data: dict[str, Any] = {"claims": [asdict(claim) for claim in found]}
    if latents:
        data["probes"] = [{"method": method.name} | knowledge.values(method, known) for method in methods]
    return Report("The paper's methods, compared", overview.summary(methods), parts, 3 if latents else 2, data)


def _claim(claim: Claim) -> Line:
    marks: dict[Verdict, Mark] = {"held": "good", "not held": "bad"}
    found = marks.get(claim.verdict, "verdict")
    return Line([claim.text, claim.verdict, claim.figures], claim.verdict == "no runs", {1: found})


# -- Table 1 -----------------------------------------------------------------------------------------------------------

# The metrics of Table 1, and then those that the paper does not give.
_COLUMNS = ("nll", "ppl", "re", "kl", "neg_elbo", "elbo_ppl", "active_units", "mutual_information")
_TABLE_HEADER = ["method", *(METRICS[key].title for key in _COLUMNS), "ESS"]


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
    autoencoder = method.config.autoencoder
    effective = [scores.effective_samples for scores in results if scores.effective_samples is not None]
    return [
        shown(method.score("nll")),
        shown(method.perplexity("nll")),
        shown(method.score("re")),
        shown(method.score("kl")),
        "–" if autoencoder else shown(method.score("neg_elbo")),
        "–" if autoencoder else shown(method.perplexity("neg_elbo")),
        overview.units(method),
        shown(method.score("mutual_information")),
        f"{sum(effective) / len(effective):.0f}" if len(effective) == len(results) else "–",
    ]


def _printed(kind: str) -> list[Line]:
    row = TABLE_1[kind]
    better = corrected(row)
    printed = [row.nll, row.ppl, row.re, row.kl, row.neg_elbo, row.elbo_ppl]
    lines = [Line(["paper, as printed", *map(shown, printed), "–", "–", "–"], aside=True)]
    if better.nll is not None and better.ppl is not None:
        bounds = [f"{low:.2f} to {high:.2f}" for low, high in (better.nll, better.ppl)]
        lines.append(Line(["paper, corrected", *bounds, *map(shown, printed[2:]), "–", "–", "–"], aside=True))
    else:
        lines.append(Line(["paper, corrected", "–", "–", shown(better.re), *("–",) * 6], aside=True))
    return lines


_NOTES = (
    "NLL: importance weighted, at most −ELBO in expectation. PPL, ELBO PPL: exp of NLL and −ELBO per token; tokens are"
    " words and the end of the sentence. AU: units whose posterior mean has a variance above 0.01 over the sentences."
    " MI: mutual information of sentence and latent variable, which decides whether it is alive. ESS: effective number"
    " of importance samples. The autoencoder's z has no prior: its KL is not a cost, and it has neither −ELBO nor NLL.",
    "The paper has another corpus, vocabulary and batch size, so compare its rows with each other only. Corrected: its"
    " program combined importance samples with prefixes of other sentences, in batches of four, so its NLL is too high"
    " by up to ln 4; an NLL cannot exceed −ELBO; the autoencoder's RE is that of a batch of four.",
)


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


def reconstructions(names: list[str], exports: list[Export], sentences: Sequence[str]) -> Part:
    """Return the sentences (empty: built-in ones) beside what each method makes of them."""
    return Part("Reconstructions", _RECONSTRUCTION_TEXT, ["", *names], _reconstructions(exports, sentences))


def _reconstructions(exports: list[Export], sentences: Sequence[str]) -> list[Line]:
    columns = []
    for found in exports:
        if not sentences:
            drawn = found.config.data.path == CAPTIONS
            words = captions.generate(5, _FRESH)
            sentences = [found.vocabulary.splitter.join(w) for w in words] if drawn else SENTENCES
        model = found.model("cpu")
        ids = [found.vocabulary.ids(sentence) for sentence in sentences]
        columns.append(decode(model, encode(model, ids).mean, found.vocabulary, Decoding()))
    return [Line(list(cells)) for cells in zip(sentences, *columns, strict=True)] if columns else []
