"""What the sentences of a config are, for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distvae.data.look import Look
from distvae.reports.comparison import cell

# Of the longest bar, in characters.
WIDTH = 40
# Labels of each column to show.
LABELS = 5


def parts(found: Look) -> list[Table | str]:
    """Return tables and lines."""
    lines: list[Table | str] = [
        f"{found.path}: corpus {found.fingerprint}; {found.vocabulary_size:,} tokens in the vocabulary, by"
        f" data.tokenizer={found.tokenizer}",
        "",
        _splits(found),
        "",
        *_bars(found),
    ]
    for name, labels in found.labels.items():
        shown = ", ".join(f"{label} ({count:,})" for label, count in labels[:LABELS])
        more = f" … {labels[-1][0]} ({labels[-1][1]:,})" if len(labels) > LABELS else ""
        lines += ["", f"Labels of {name} in train, {len(labels)}: {shown}{more}"]
    lines += ["", "Sentences of train, and their tokens as the model sees them:"]
    for text, tokens in found.examples:
        lines += [f"  {text}", f"  → {tokens}"]
    lines += ["", *found.notes] if found.notes else []
    lines += ["", *(f"WARNING {warning}" for warning in found.warnings)] if found.warnings else []
    return lines


def _splits(found: Look) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("split")
    for title in ("sentences", f"{found.unit}s", "median", "longest", "unknown"):
        table.add_column(title, justify="right")
    for name, split in found.splits.items():
        unknown = "–" if split.unknown is None else f"{split.unknown:.2%}"
        counts = (split.sentences, split.tokens, split.median, split.longest)
        table.add_row(cell(name), *(f"{count:,}" for count in counts), unknown)
    return table


def _bars(found: Look) -> list[str]:
    most = max(count for _, _, count in found.lengths)
    names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high, _ in found.lengths]
    width = max(map(len, names))
    return [f"Lengths of train, in {found.unit}s:"] + [
        f"  {name:>{width}}  {'█' * max(round(WIDTH * count / most), count > 0)} {count:,}"
        for name, (_, _, count) in zip(names, found.lengths, strict=True)
    ]
