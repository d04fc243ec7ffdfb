"""Figure 2 of the paper's report: KL, mutual information and γ by epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distvae.reports.methods import FinishedRun, Method, Run
from distvae.system.errors import UserError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that the colour-blind can distinguish, in the paper's order of methods.
_COLOURS = {"KLA": "#7a7a7a", "PT + KLA": "#c2437f", "PT + KLA + FB": "#d9772b", "PT + KLA + SFB": "#2a7fb8"}
_MORE_COLOURS = ("#1a9e6b", "#8a5fbf", "#a8870f", "#222222")

CAPTION = (
    "Validation KL, mutual information and the weight γ of the KL term by epoch of the VAE. A line is a run, its dot"
    " the epoch whose weights were scored. Dashed: λ. Dotted: end of annealing."
)


# On a dark page, also where the file is an image of it. Matplotlib styles each mark, which only !important overrides.
_DARK = b"""<style>
@media screen and (prefers-color-scheme: dark) {
  text { fill: #e4e7ea !important; }
  [style*="stroke: #000000"], [style*="stroke: #444444"] { stroke: #9aa4ae !important; }
  [style*="stroke: #e6e6e6"] { stroke: #373d44 !important; }
  [style*="stroke: #222222"] { stroke: #e4e7ea !important; }
}
</style>
"""


def draw(methods: list[Method]) -> bytes:
    """Return the figure as SVG.

    Raises:
        UserError: Matplotlib is not installed.
    """
    try:  # imported here, because it takes a second
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
        for epochs in sorted({method.config.kl.policy.warm_up for method in drawn} - {0}):
            panel.axvline(epochs + 0.5, color="#9a9a9a", linestyle=":", linewidth=1)
    for rate in sorted({rate for method in drawn if (rate := method.config.kl.rate) is not None}):
        axes[0].axhline(rate, color="#444444", linestyle="--", linewidth=1)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    if drawn:
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
    sink = io.BytesIO()
    # Keep text as text, and make the file depend on the runs alone.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "distvae", "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", metadata={"Date": None}, transparent=True)
    head, defs, rest = sink.getvalue().partition(b" <defs>\n")
    return head + _DARK + defs + rest


def _draw(axes: Sequence[Axes], run: Run, colour: str, label: str | None) -> None:
    epochs = [row.epoch for row in run.vae]
    columns = (
        [row.valid.kl.mean for row in run.vae],
        [row.valid.mutual_information.mean for row in run.vae],
        [row.kl_weight for row in run.vae],
    )
    best = run.results.stages[-1].best_epoch if isinstance(run, FinishedRun) else None
    for panel, values in zip(axes, columns, strict=True):
        # Matplotlib takes text between dollars for mathematics.
        panel.plot(epochs, values, color=colour, linewidth=1.4, label=label and printable(label).replace("$", "\\$"))
        if best is not None and best in epochs:
            panel.plot([best], [values[epochs.index(best)]], "o", color=colour, markersize=5)
        label = None  # name it in one panel only
