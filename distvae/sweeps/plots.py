"""The pictures of a sweep's report: Plotly figures as plain JSON. Colours that follow the page are set there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from distvae.sweeps.account import LETTERS, Account, Entry, by_elbo, label, said
from distvae.sweeps.sweep import NAMES, Dimension, Value
from distvae.system.errors import printable

# Told apart by the colour-blind, and on white and on black.
RIGHT, WRONG, OTHER, BEST = "#2a7fb8", "#d9772b", "#8f8f8f", "#1a9e6b"
# From the better to the worse; no yellow, which is lost on white.
_SCALE = [[0.0, "#1a9e6b"], [0.45, "#2a7fb8"], [1.0, "#c2437f"]]

# Whether a trial meets the sweep's constraints, on its KL and its latent.
MEETS, MISSES = "alive, KL is right", "dead, or KL is off"

# Panels side by side, and from which ratio on an axis of given values is logarithmic.
_BESIDE, _WIDE = 3, 15


@dataclass(frozen=True)
class Section:
    """Pictures under a heading."""

    title: str
    text: str
    figures: list[str]  # JSON
    remark: str | None = None


def sections(account: Account) -> list[Section]:
    """All pictures, in their order; a section without any says why in its text."""
    drawn = [entry for entry in account.entries if entry.outcome is not None and entry.trial.state != "failed"]
    curves = [entry for entry in account.entries if any(row["stage"] == "train" for row in entry.rows)]
    nothing = "No trial has recorded an epoch of the VAE yet."
    found = [
        Section(
            "NLL and KL by hyperparameter",
            "Validation sentences. Short grey lines are each trial's λ; a KL should lie near it." if drawn else nothing,
            [_json(_against(account, drawn, keys)) for keys in _chunks(list(account.sweep.config.space))]
            if drawn
            else [],
        ),
        Section(
            "All at once",
            "A line is a trial. Drag along an axis to choose trials, drag its name to move it."
            if len(drawn) > 1
            else "Needs two trials.",
            [_json(_parallel(account, drawn))] if len(drawn) > 1 else [],
        ),
        Section(
            "KL and γ by epoch",
            "Validation KL and the weight γ of the KL term; dotted lines are λ, and where annealing ends."
            if curves
            else nothing,
            [_json(_curves(account, curves))] if curves else [],
        ),
        Section(
            "What −ELBO would have chosen",
            "On the dotted line −ELBO is NLL, as it is of a latent variable that is dead. One that tells something lies"
            " above it, and −ELBO holds that against it."
            if drawn
            else nothing,
            [_json(_trade_off(account, drawn))] if drawn else [],
            by_elbo(account),
        ),
    ]
    return found


def _json(figure: go.Figure) -> str:
    # Within a page's script nothing may end it.
    return figure.to_json().replace("<", "\\u003c")


def _chunks(keys: list[str]) -> list[list[str]]:
    return [keys[i : i + _BESIDE] for i in range(0, len(keys), _BESIDE)]


def _layout(figure: go.Figure, height: int, **more) -> go.Figure:
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemwidth": 30},
        **more,
    )
    figure.update_xaxes(zeroline=False, showline=True, ticks="outside", automargin=True)
    figure.update_yaxes(zeroline=False, showline=True, ticks="outside", automargin=True)
    return figure


def _hover(entry: Entry) -> str:
    found = entry.outcome
    values = "<br>".join(f"{_plain(label(key))} = {_plain(said(value))}" for key, value in entry.trial.values.items())
    if found is None:
        return f"trial {entry.number}<br>{values}"
    return (
        f"trial {entry.number}, {entry.trial.state}<br>{values}<br>NLL {found.nll:.2f}, −ELBO {found.neg_elbo:.2f}<br>"
        f"KL {found.kl:.2f}{'' if found.target_rate is None else f' (λ {found.target_rate:g})'}, γ"
        f" {found.kl_weight:.3g}<br>MI {found.mutual_information:.2f}, AU {found.active_units} of {entry.units}<br>"
        f"latent {found.latent}"
    )


def _plain(text: str) -> str:
    """Plotly takes a few tags in its texts, links among them."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")


def _groups(account: Account, drawn: list[Entry]) -> list[tuple[str, dict, list[Entry]]]:
    """Entries by how they are marked: name, marker, entries."""
    objective = account.sweep.config.objective
    if objective.kl_tolerance is None and not objective.require_alive:
        return [("trial", {"color": RIGHT, "symbol": "circle"}, drawn)]
    return [
        (MEETS, {"color": RIGHT, "symbol": "circle"}, [entry for entry in drawn if entry.fine]),
        (MISSES, {"color": WRONG, "symbol": "x"}, [entry for entry in drawn if not entry.fine]),
    ]


# -- NLL and KL by hyperparameter --------------------------------------------------------------------------------------


def _against(account: Account, drawn: list[Entry], keys: list[str]) -> go.Figure:
    figure = make_subplots(
        rows=2, cols=len(keys), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.07, horizontal_spacing=0.03
    )
    legend = set()
    for column, key in enumerate(keys, 1):
        having = [entry for entry in drawn if key in entry.trial.values]
        figure.add_scatter(
            x=[_place(account.sweep.config.space[key], entry.trial.values[key]) for entry in having],
            y=[entry.outcome.target_rate for entry in having],
            mode="markers",
            marker={"symbol": "line-ew", "size": 22, "line": {"width": 2, "color": OTHER}, "color": OTHER},
            name="λ",
            legendgroup="λ",
            showlegend="λ" not in legend and bool(having),
            hoverinfo="skip",
            row=2,
            col=column,
        )
        legend |= {"λ"} if having else set()
        for name, marker, entries in _groups(account, having):
            for row, metric in enumerate(("nll", "kl"), 1):
                figure.add_scatter(
                    x=[_place(account.sweep.config.space[key], entry.trial.values[key]) for entry in entries],
                    y=[getattr(entry.outcome, metric) for entry in entries],
                    mode="markers",
                    marker={**marker, "size": 9, "opacity": 0.85},
                    name=name,
                    legendgroup=name,
                    showlegend=name not in legend and bool(entries),
                    text=[_hover(entry) for entry in entries],
                    hovertemplate="%{text}<extra></extra>",
                    row=row,
                    col=column,
                )
                legend |= {name} if entries else set()
        figure.update_xaxes(**_axis(account.sweep.config.space[key], having, key), col=column)
        figure.update_xaxes(title_text=label(key), row=2, col=column)
    figure.update_yaxes(title_text="NLL", row=1, col=1)
    figure.update_yaxes(title_text="KL", row=2, col=1)
    _layout(figure, 520)
    for row, metric in enumerate(("nll", "kl"), 1):
        bounds = [getattr(entry.outcome, metric) for entry in drawn]
        rates = [entry.outcome.target_rate for entry in drawn if entry.outcome.target_rate is not None]
        bounds += rates if metric == "kl" else []
        figure.update_yaxes(range=_room(bounds), row=row)
    return figure


def _logarithmic(dimension: Dimension) -> bool:
    if dimension.log_uniform:
        return True
    values = dimension.values or ()
    return dimension.numeric and len(values) > 2 and min(values) > 0 and max(values) / min(values) >= _WIDE


def _place(dimension: Dimension, value: Value) -> float | str:
    return value if dimension.numeric else _plain(said(value))


def _axis(dimension: Dimension, having: list[Entry], key: str) -> dict:
    if not dimension.numeric:
        names = [_plain(said(value)) for value in dimension.values]
        return {"type": "category", "categoryorder": "array", "categoryarray": names, "range": [-0.5, len(names) - 0.5]}
    # Where trials are may be beyond where they could begin (population-based training).
    values = [*dimension.extremes, *(entry.trial.values[key] for entry in having)]
    low, high = min(values), max(values)
    if _logarithmic(dimension):
        margin = 0.06 * math.log10(high / low) or 0.3
        bounds = [math.log10(low) - margin, math.log10(high) + margin]
        ticks = sorted(dimension.values or _ticks(low, high))
        return {"type": "log", "range": bounds, "tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    axis = {"type": "linear", "range": _room(values)}
    if dimension.values and len(dimension.values) <= 8:
        axis |= {"tickvals": sorted(dimension.values), "ticktext": [f"{value:g}" for value in sorted(dimension.values)]}
    return axis


def _room(values: list[float]) -> list[float]:
    """Bounds of an axis with all values in it, and room where there is one value only."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return [low - margin, high + margin]


def _whole(values: list[int]) -> list[int]:
    """Whole numbers for an axis, ten at most."""
    return list(range(min(values), max(values) + 1, math.ceil((max(values) - min(values) + 1) / 10)))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, some three to eight."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    return [low, high]


# -- All at once -------------------------------------------------------------------------------------------------------


def _parallel(account: Account, drawn: list[Entry]) -> go.Figure:
    dimensions = [
        _coordinate(
            LETTERS.get(key, key.rpartition(".")[2]), dimension, [e.trial.values.get(key, _MISSING) for e in drawn]
        )
        for key, dimension in account.sweep.config.space.items()
    ]
    for name in ("nll", "kl", "mutual_information", "active_units"):
        values = [getattr(entry.outcome, name) for entry in drawn]
        dimensions.append({"label": NAMES[name], "values": values, "range": _room(values), "tickformat": ".4~g"})
        if name == "active_units":
            dimensions[-1]["tickvals"] = _whole(values)
    colours = [entry.outcome.nll for entry in drawn]
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={
                "color": colours,
                "colorscale": _SCALE,
                "cmin": min(colours),
                "cmax": max(max(colours), min(colours) + 1e-6),
                "showscale": True,
                "colorbar": {"title": {"text": "NLL"}, "thickness": 12, "outlinewidth": 0},
            },
            unselected={"line": {"opacity": 0.08}},
            labelfont={"size": 13},
            tickfont={"size": 11},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},  # the axes' ends, which are no values of trials
        )
    )
    _layout(figure, 430)
    longest = max(len(text) for text in dimensions[0]["ticktext"])
    figure.update_layout(margin={"l": 40 + 7 * longest, "r": 30, "t": 70, "b": 30})
    return figure


class _Missing:
    """The value of a key that a trial does not have."""


_MISSING = _Missing()


def _coordinate(name: str, dimension: Dimension, values: list) -> dict:
    """An axis; trials that have no value on it run below its end."""
    missing = any(value is _MISSING for value in values)
    if not dimension.numeric:
        names = [printable(said(value)) for value in dimension.values]  # here there are no tags
        places = [-1 if value is _MISSING else names.index(printable(said(value))) for value in values]
        ticks, texts = list(range(len(names))), names
        low, high = -0.5, len(names) - 0.5
    else:
        change = math.log10 if _logarithmic(dimension) else float
        there = [value for value in values if value is not _MISSING]
        ends = [min([*dimension.extremes, *there]), max([*dimension.extremes, *there])]
        if dimension.values and len(dimension.values) <= 8:
            marks = sorted(dimension.values)
        elif _logarithmic(dimension):
            marks = _ticks(*ends)
        else:
            marks = [ends[0] + i * (ends[1] - ends[0]) / 4 for i in range(5)]
        ticks, texts = [change(mark) for mark in marks], [f"{mark:.3g}" for mark in marks]
        low, high = change(ends[0]), change(ends[1])
        span = (high - low) or 1.0
        low, high = low - 0.04 * span, high + 0.04 * span
        places = [low - 0.15 * span if value is _MISSING else change(value) for value in values]
    if missing:
        low = min(places)
        ticks, texts = [low, *ticks], ["–", *texts]
    return {"label": name, "values": places, "range": [low, high], "tickvals": ticks, "ticktext": texts}


# -- By epoch ----------------------------------------------------------------------------------------------------------


def _curves(account: Account, entries: list[Entry]) -> go.Figure:
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.58, 0.42])
    legend = set()
    for entry in sorted(entries, key=lambda entry: entry is account.best):  # the best on top
        if entry is account.best:
            name, colour, width = f"best, trial {entry.number}", BEST, 3.0
        elif entry.trial.state == "failed":
            name, colour, width = "failed", OTHER, 1.2
        elif entry.fine:
            name, colour, width = MEETS, RIGHT, 1.4
        else:
            name, colour, width = MISSES, WRONG, 1.4
        rows = [row for row in entry.rows if row["stage"] == "train"]
        for place, values in enumerate(
            ([row["valid"]["kl"]["mean"] for row in rows], [row["kl_weight"] for row in rows]), 1
        ):
            figure.add_scatter(
                x=[row["epoch"] for row in rows],
                y=values,
                mode="lines" if len(rows) > 1 else "markers",
                line={"color": colour, "width": width},
                marker={"color": colour},
                opacity=1.0 if entry is account.best else 0.65,
                name=name,
                legendgroup=name,
                showlegend=name not in legend,
                text=[f"{_hover(entry)}<br>epoch {row['epoch']}" for row in rows],
                hovertemplate="%{text}: %{y:.3f}<extra></extra>",
                row=place,
                col=1,
            )
            legend.add(name)
    rates = sorted({entry.outcome.target_rate for entry in entries} - {None})
    for rate in rates if len(rates) <= 6 else ():
        figure.add_hline(
            rate, line={"dash": "dot", "color": OTHER, "width": 1}, row=1, col=1,
            annotation={"text": f"λ = {rate:g}", "font": {"color": OTHER}}, annotation_position="right",
        )  # fmt: skip
    annealing = {_annealing(account, entry) for entry in entries}
    longest = max(row["epoch"] for entry in entries for row in entry.rows if row["stage"] == "train")
    if len(annealing) == 1 and 0 < (end := annealing.pop()) < longest:
        for place in (1, 2):
            figure.add_vline(end, line={"dash": "dot", "color": OTHER, "width": 1}, row=place, col=1)
        figure.add_annotation(
            x=end, y=1, xref="x2", yref="y2 domain", text="annealing ends", showarrow=False, xanchor="left",
            yanchor="bottom", font={"color": OTHER},
        )  # fmt: skip
    figure.update_yaxes(title_text="KL, nats", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="γ", rangemode="tozero", row=2)
    figure.update_xaxes(title_text="epoch of the VAE", row=2)
    _layout(figure, 560)
    figure.update_layout(margin_r=60)
    if longest <= 12:
        figure.update_xaxes(dtick=1)
    figure.update_xaxes(range=[0.5, longest + 0.5] if longest < 3 else [1, longest])
    return figure


def _annealing(account: Account, entry: Entry) -> int:
    return account.sweep.config_of(entry.trial.values, account.folder).kl.policy.warm_up


# -- What −ELBO would have chosen --------------------------------------------------------------------------------------


def _trade_off(account: Account, drawn: list[Entry]) -> go.Figure:
    panels = (("nll", "neg_elbo"), ("mutual_information", "nll"), ("active_units", "nll"))
    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.08)
    for column, (across, up) in enumerate(panels, 1):
        if up == "neg_elbo":
            ends = _room([entry.outcome.nll for entry in drawn])
            figure.add_scatter(
                x=ends, y=ends, mode="lines", line={"dash": "dot", "color": OTHER, "width": 1}, showlegend=False,
                hoverinfo="skip", row=1, col=column,
            )  # fmt: skip
        for _, marker, entries in _groups(account, drawn):
            figure.add_scatter(
                x=[getattr(entry.outcome, across) for entry in entries],
                y=[getattr(entry.outcome, up) for entry in entries],
                mode="markers",
                marker={
                    "symbol": marker["symbol"],
                    "size": 10,
                    "color": [entry.outcome.mutual_information for entry in entries],
                    "coloraxis": "coloraxis",
                },
                showlegend=False,
                text=[_hover(entry) for entry in entries],
                hovertemplate="%{text}<extra></extra>",
                row=1,
                col=column,
            )
        marked = [e for e in drawn if e.number in account.front] or [e for e in drawn if e is account.best]
        figure.add_scatter(
            x=[getattr(entry.outcome, across) for entry in marked],
            y=[getattr(entry.outcome, up) for entry in marked],
            mode="markers",
            marker={"symbol": "circle-open", "size": 18, "line": {"width": 2.5}, "color": BEST},
            name="front" if account.front else "best",
            legendgroup="marked",
            showlegend=column == 1 and bool(marked),
            hoverinfo="skip",
            row=1,
            col=column,
        )
        figure.update_xaxes(title_text=NAMES[across], row=1, col=column)
        figure.update_yaxes(title_text=NAMES[up], row=1, col=column)
    figure.update_xaxes(tickvals=_whole([entry.outcome.active_units for entry in drawn]), col=3)
    for name, marker, entries in _groups(account, drawn):
        if entries:  # a legend cannot show a colour that stands for a number
            grey = marker | {"color": OTHER, "size": 10}
            figure.add_scatter(x=[None], y=[None], mode="markers", marker=grey, name=name, row=1, col=1)
    _layout(figure, 420)
    figure.update_layout(
        coloraxis={
            "colorscale": _SCALE,
            "reversescale": True,
            "colorbar": {"title": {"text": "MI"}, "thickness": 12, "outlinewidth": 0},
        }
    )
    return figure
