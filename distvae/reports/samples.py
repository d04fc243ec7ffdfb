"""The table that compares samples with real text."""

from __future__ import annotations

from distvae.evaluation.scores import Estimate, fixed
from distvae.evaluation.texts import SELF_BLEU_SENTENCES, TextStatistics
from distvae.reports.comparison import empty_table, show_parts


def show(statistics: dict[str, TextStatistics]) -> None:
    """Print a row for each statistic and a column for each set of sentences."""
    shown = empty_table(["", *statistics])
    for title, texts in _rows(list(statistics.values())):
        shown.add_row(title, *texts)
    show_parts([shown])


def _rows(columns: list[TextStatistics]) -> list[tuple[str, list[str]]]:
    rows = [
        ("sentences", [f"{each.sentences:,}" for each in columns]),
        ("tokens per sentence", [str(each.length) for each in columns]),
        ("different words / words", [_share(each.distinct_1) for each in columns]),
        ("different bigrams / bigrams", [_share(each.distinct_2) for each in columns]),
        (f"self-BLEU of {SELF_BLEU_SENTENCES}", [_estimate(each.self_bleu, 3) for each in columns]),
        ("sentences that stand in train", [_share(each.copied) for each in columns]),
        ("4-grams that stand in train", [_share(each.copied_4grams) for each in columns]),
        ("forward PPL: these, by train's trigrams", [_estimate(each.forward_ppl) for each in columns]),
        ("reverse PPL: test, by their trigrams", [_estimate(each.reverse_ppl) for each in columns]),
    ]
    scores = [each.mauve for each in columns if each.mauve is not None]
    return [*rows, ("MAUVE of these and of test", [fixed(score, 3) for score in scores])] if scores else rows


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _estimate(value: Estimate | None, decimals: int = 2) -> str:
    return "–" if value is None else value.text(decimals)
