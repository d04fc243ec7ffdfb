"""Learning curves of the field's report: a panel per method, as SVG in the colours of the page or of the reader."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distvae.reports.document import Figure, Panel
from distvae.reports.methods import FinishedRun, Method, Run
from distvae.runs.records import EpochRecord
from distvae.system.errors import printable

# Of a panel, in pixels: its size, the sides of its plots, and the tops and heights of both.
_WIDTH, _HEIGHT = 310, 235
_LEFT, _RIGHT = 34, 302
_PLOTS = ((16, 100), (142, 64))

# Colours that the colour-blind can tell apart, on white and on black.
_STYLE = """
.curves { --kl: #2a7fb8; --mi: #d9772b; --elbo: #157a53; --text: #1d2126; --dim: #5c6570; --line: #d9dde2; }
@media (prefers-color-scheme: dark) { .curves { --kl: #62b0e4; --mi: #f0a565; --elbo: #5cc99a; --text: #e4e7ea;
  --dim: #9aa4ae; --line: #373d44; } }
@media print { .curves { --kl: #2a7fb8; --mi: #d9772b; --elbo: #157a53; --text: #000; --dim: #444; --line: #bbb; } }
.curves path { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
.curves text { fill: var(--dim); font: 11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
.curves .title { fill: var(--text); font-weight: 600; }
.curves .grid { stroke: var(--line); stroke-width: 1; }
.curves .rule { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 4 3; }
.curves .kl { stroke: var(--kl); } .curves .mi { stroke: var(--mi); } .curves .elbo { stroke: var(--elbo); }
.curves circle.kl { fill: var(--kl); } .curves circle.mi { fill: var(--mi); } .curves circle.elbo { fill: var(--elbo); }
.curves text.kl { fill: var(--kl); stroke: none; } .curves text.mi { fill: var(--mi); stroke: none; }
.curves text.elbo { fill: var(--elbo); stroke: none; }
"""

_CAPTION = (
    "Above: validation KL and MI, in nats; dashed: λ. Below: validation −ELBO, in nats; dashed: the language model's"
    " lowest. By epoch of the VAE, after any pretraining. A line is a run, its dot the epoch whose weights were scored."
    " All panels have the same axes; values beyond them are cut off."
)

_SERIES: dict[str, Callable[[EpochRecord], float]] = {
    "kl": lambda row: row.valid.kl.mean,
    "mi": lambda row: row.valid.mutual_information.mean,
    "elbo": lambda row: row.valid.neg_elbo.mean,
}


def draw(methods: Sequence[Method], baseline: Method | None) -> Figure | None:
    """Return the curves of all methods with a VAE or a language model; None if no epoch has been recorded.

    Args:
        methods: in the order of their panels.
        baseline: the language model to compare with.
    """
    drawn = [method for method in methods if method.kind != "AE" and any(run.vae for run in method.runs)]
    if not drawn:
        return None
    axes = _axes(drawn)
    level = None if baseline is None else min(_SERIES["elbo"](row) for run in baseline.runs for row in run.vae)
    bodies = [_panel(method, axes, level) for method in drawn]
    panels = tuple(
        Panel(method.name, _svg(body, _HEIGHT, f"KL, MI and −ELBO by epoch: {method.name}"))
        for method, body in zip(drawn, bodies, strict=True)
    )
    return Figure("curves.svg", _sheet(drawn, bodies), _CAPTION, panels, _STYLE)


@dataclass(frozen=True)
class _Axes:
    """What the axes of all panels end at."""

    epochs: int
    nats: float  # of KL and MI, from 0
    low: float  # of −ELBO
    high: float

    def x(self, epoch: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * ((epoch - 1) / (self.epochs - 1) if self.epochs > 1 else 0.5)

    def y(self, name: str, value: float) -> float:
        top, height = _PLOTS[name == "elbo"]
        low, high = (self.low, self.high) if name == "elbo" else (0.0, self.nats)
        return top + height * (1 - (value - low) / (high - low))


def _axes(methods: Sequence[Method]) -> _Axes:
    """Return axes that show where runs end; what they come from may be far beyond, such as an autoencoder's KL."""
    runs = [run for method in methods for run in method.runs if run.vae]
    ends = [row for run in runs for row in run.vae[len(run.vae) // 2 :]]
    rates = [run.config.kl.rate or 0.0 for run in runs]
    nats = 1.1 * max(1.0, *rates, *(max(_SERIES["kl"](row), _SERIES["mi"](row)) for row in ends))
    losses = [_SERIES["elbo"](row) for row in ends]
    low, high = min(losses), max(losses)
    room = max(0.3 * (high - low), 0.5)
    return _Axes(max(len(run.vae) for run in runs), nats, low - 0.1 * room, high + room)


def _panel(method: Method, axes: _Axes, level: float | None) -> str:
    """Return the marks of a method's panel."""
    marks = []
    for (top, height), low, high in zip(_PLOTS, (0.0, axes.low), (axes.nats, axes.high), strict=True):
        for tick in _ticks(low, high, 3):
            y = top + height * (1 - (tick - low) / (high - low))
            marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            marks.append(f'<text x="{_LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(1, axes.epochs, 5):
        if tick == int(tick):
            marks.append(f'<text x="{axes.x(tick):.1f}" y="220" text-anchor="middle">{tick:g}</text>')
    marks.append(f'<text x="{_RIGHT}" y="233" text-anchor="end">epoch</text>')
    for name, label, x, y in (("kl", "KL", 34, 10), ("mi", "MI", 56, 10), ("elbo", "−ELBO", 34, 131)):
        if name == "elbo" or not method.config.language_model:
            marks.append(f'<text class="{name}" x="{x}" y="{y}">{label}</text>')
    rate = method.config.kl.rate
    for name, value in (("kl", rate), ("elbo", level)):
        if value is not None and (name == "kl" or axes.low <= value <= axes.high):
            y = axes.y(name, value)
            marks.append(f'<line class="rule" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    names = ["elbo"] if method.config.language_model else list(_SERIES)
    marks += [_line(run, name, axes) for run in method.runs for name in names]
    return "".join(marks)


def _line(run: Run, name: str, axes: _Axes) -> str:
    """Return the line of a run's metric, and a dot where its weights were scored."""
    top, height = _PLOTS[name == "elbo"]
    points = [(row.epoch, axes.y(name, _SERIES[name](row))) for row in run.vae]
    shown = [(axes.x(epoch), min(max(y, top - 3), top + height + 3)) for epoch, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shown)
    best = run.results.stages[-1].best_epoch if isinstance(run, FinishedRun) else None
    single = best if len(points) > 1 else points[0][0] if points else None
    dots = [
        f'<circle class="{name}" cx="{axes.x(epoch):.1f}" cy="{y:.1f}" r="2.8"/>'
        for epoch, y in points
        if epoch == single and top <= y <= top + height
    ]
    return (f'<path class="{name}" d="{path}"/>' if points else "") + "".join(dots)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most ``most`` + 1 round numbers between two."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-9)))
    step = next(
        part * step for part in (0.1, 0.2, 0.5, 1, 2, 5, 10) if (high - low) / (part * step) <= most or part == 10
    )
    return [round(n * step, 10) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _svg(body: str, height: int, label: str) -> str:
    return (
        f'<svg class="curves" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(printable(label))}">'
        f"{body}</svg>"
    )


def _sheet(methods: Sequence[Method], bodies: Sequence[str]) -> bytes:
    """Return all panels as an SVG file, three in a row, each under its method's name."""
    across, title = 3, 36
    rows = math.ceil(len(bodies) / across)
    size = f"{across * _WIDTH} {rows * (_HEIGHT + title)}"
    parts = []
    for number, (method, body) in enumerate(zip(methods, bodies, strict=True)):
        x, y = number % across * _WIDTH, number // across * (_HEIGHT + title)
        lines = textwrap.wrap(printable(method.name), 46, max_lines=2, placeholder=" …")
        names = "".join(
            f'<text class="title" x="4" y="{12 + 14 * i}">{html.escape(line)}</text>' for i, line in enumerate(lines)
        )
        parts.append(f'<g transform="translate({x} {y})">{names}<g transform="translate(0 {title - 6})">{body}</g></g>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {size}" width="{across * _WIDTH}">'
    return f"{head}<style>{_STYLE}</style>{''.join(parts)}</svg>\n".encode()
