"""The figures of a sweep report, by Plotly. The page sets the colours that follow its theme."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from distvae.evaluation.metrics import METRICS
from distvae.sweeps.account import Account, ScoredTrial
from distvae.sweeps.axes import MISSING, axis_of, coordinate, place_of, plain, room, whole_ticks
from distvae.sweeps.labels import LETTERS, format_value, label

# Colours that the colour-blind can tell apart, on white and on black.
RIGHT, WRONG, OTHER, BEST = "#2a7fb8", "#d9772b", "#8f8f8f", "#1a9e6b"

# From better to worse, without yellow, which is hard to see on white.
_SCALE = [[0.0, "#1a9e6b"], [0.45, "#2a7fb8"], [1.0, "#c2437f"]]

# Whether a trial meets the sweep's constraints, on its KL and its latent.
MEETS, MISSES = "alive, KL is right", "dead, or KL is off"


def _layout(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemwidth": 30},
    )
    figure.update_xaxes(zeroline=False, showline=True, ticks="outside", automargin=True)
    figure.update_yaxes(zeroline=False, showline=True, ticks="outside", automargin=True)
    return figure


def _hover(entry: ScoredTrial, account: Account) -> str:
    found = entry.outcome
    shown = [metric for metric in account.sweep.config.objective.shown if metric.key in found.metrics]
    metrics = ", ".join(f"{metric.title} {metric.short(found.scores)}" for metric in shown)
    values = "<br>".join(
        f"{plain(label(key))} = {plain(format_value(value))}" for key, value in entry.trial.values.items()
    )
    return (
        f"trial {entry.number}, {entry.trial.state}<br>{values}<br>{metrics}<br>"
        f"{'' if found.target_rate is None else f'λ {found.target_rate:g}, '}γ {found.kl_weight:.3g}<br>"
        f"latent {found.latent or '–'}"
    )


def _groups(account: Account, drawn: list[ScoredTrial]) -> list[tuple[str, dict[str, str], list[ScoredTrial]]]:
    """Return trials by whether they meet the constraints: name, marker, trials."""
    objective = account.sweep.config.objective
    if objective.kl_tolerance is None and not objective.require_alive:
        return [("trial", {"color": RIGHT, "symbol": "circle"}, drawn)]
    return [
        (MEETS, {"color": RIGHT, "symbol": "circle"}, [entry for entry in drawn if entry.fine]),
        (MISSES, {"color": WRONG, "symbol": "x"}, [entry for entry in drawn if not entry.fine]),
    ]


# -- NLL and KL by hyperparameter --------------------------------------------------------------------------------------


def by_hyperparameter(account: Account, drawn: list[ScoredTrial], keys: list[str]) -> go.Figure:
    """Draw NLL and KL over each of these config keys."""
    figure = make_subplots(
        rows=2, cols=len(keys), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.07, horizontal_spacing=0.03
    )
    legend = set()
    for column, key in enumerate(keys, 1):
        having = [entry for entry in drawn if key in entry.trial.values]
        figure.add_scatter(
            x=[place_of(account.sweep.config.space[key], entry.trial.values[key]) for entry in having],
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
                    x=[place_of(account.sweep.config.space[key], entry.trial.values[key]) for entry in entries],
                    y=[entry.outcome.metrics[metric] for entry in entries],
                    mode="markers",
                    marker={**marker, "size": 9, "opacity": 0.85},
                    name=name,
                    legendgroup=name,
                    showlegend=name not in legend and bool(entries),
                    text=[_hover(entry, account) for entry in entries],
                    hovertemplate="%{text}<extra></extra>",
                    row=row,
                    col=column,
                )
                legend |= {name} if entries else set()
        figure.update_xaxes(**axis_of(account.sweep.config.space[key], having, key), col=column)
        figure.update_xaxes(title_text=label(key), row=2, col=column)
    figure.update_yaxes(title_text="NLL", row=1, col=1)
    figure.update_yaxes(title_text="KL", row=2, col=1)
    _layout(figure, 520)
    for row, metric in enumerate(("nll", "kl"), 1):
        bounds = [entry.outcome.metrics[metric] for entry in drawn]
        rates = [entry.outcome.target_rate for entry in drawn if entry.outcome.target_rate is not None]
        bounds += rates if metric == "kl" else []
        figure.update_yaxes(range=room(bounds), row=row)
    return figure


# -- All at once -------------------------------------------------------------------------------------------------------


def parallel_coordinates(account: Account, drawn: list[ScoredTrial]) -> go.Figure:
    """Draw a line per trial through all config keys and metrics."""
    dimensions = [
        coordinate(
            LETTERS.get(key, key.rpartition(".")[2]), dimension, [e.trial.values.get(key, MISSING) for e in drawn]
        )
        for key, dimension in account.sweep.config.space.items()
    ]
    for metric in account.sweep.config.objective.shown:
        if metric.key == "neg_elbo":  # it has a figure of its own
            continue
        if any(metric.key not in entry.outcome.metrics for entry in drawn):  # an older version did not compute it
            continue
        values = [entry.outcome.metrics[metric.key] for entry in drawn]
        dimensions.append({"label": metric.title, "values": values, "range": room(values), "tickformat": ".4~g"})
        if metric.most is not None:
            dimensions[-1]["tickvals"] = whole_ticks([int(value) for value in values])
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
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},  # the ends of the axes, which are not values of trials
        )
    )
    _layout(figure, 430)
    longest = max(len(text) for text in dimensions[0]["ticktext"])
    figure.update_layout(margin={"l": 40 + 7 * longest, "r": 30, "t": 70, "b": 30})
    return figure


# -- By epoch ----------------------------------------------------------------------------------------------------------


def by_epoch(account: Account, entries: list[ScoredTrial]) -> go.Figure:
    """Draw validation KL and γ over the epochs of each trial."""
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
        rows = [row for row in entry.rows if row.stage == "train"]
        for place, values in enumerate(([row.valid.kl.mean for row in rows], [row.kl_weight for row in rows]), 1):
            figure.add_scatter(
                x=[row.epoch for row in rows],
                y=values,
                mode="lines" if len(rows) > 1 else "markers",
                line={"color": colour, "width": width},
                marker={"color": colour},
                opacity=1.0 if entry is account.best else 0.65,
                name=name,
                legendgroup=name,
                showlegend=name not in legend,
                text=[f"{_hover(entry, account)}<br>epoch {row.epoch}" for row in rows],
                hovertemplate="%{text}: %{y:.3f}<extra></extra>",
                row=place,
                col=1,
            )
            legend.add(name)
    rates = sorted({entry.outcome.target_rate for entry in entries if entry.outcome.target_rate is not None})
    for rate in rates if len(rates) <= 6 else ():
        figure.add_hline(
            rate, line={"dash": "dot", "color": OTHER, "width": 1}, row=1, col=1,
            annotation={"text": f"λ = {rate:g}", "font": {"color": OTHER}}, annotation_position="right",
        )  # fmt: skip
    annealing = {_annealing(account, entry) for entry in entries}
    longest = max(row.epoch for entry in entries for row in entry.rows if row.stage == "train")
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


def _annealing(account: Account, entry: ScoredTrial) -> int:
    return account.sweep.config_of(entry.trial.values, account.folder).kl.policy.warm_up


# -- What −ELBO would have chosen --------------------------------------------------------------------------------------


def trade_off(account: Account, drawn: list[ScoredTrial]) -> go.Figure:
    """Draw −ELBO over NLL, and NLL over what it trades off against."""
    panels = (("nll", "neg_elbo"), ("mutual_information", "nll"), ("active_units", "nll"))
    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.08)
    for column, (across, up) in enumerate(panels, 1):
        if up == "neg_elbo":
            ends = room([entry.outcome.nll for entry in drawn])
            figure.add_scatter(
                x=ends, y=ends, mode="lines", line={"dash": "dot", "color": OTHER, "width": 1}, showlegend=False,
                hoverinfo="skip", row=1, col=column,
            )  # fmt: skip
        for _, marker, entries in _groups(account, drawn):
            figure.add_scatter(
                x=[entry.outcome.metrics[across] for entry in entries],
                y=[entry.outcome.metrics[up] for entry in entries],
                mode="markers",
                marker={
                    "symbol": marker["symbol"],
                    "size": 10,
                    "color": [entry.outcome.mutual_information for entry in entries],
                    "coloraxis": "coloraxis",
                },
                showlegend=False,
                text=[_hover(entry, account) for entry in entries],
                hovertemplate="%{text}<extra></extra>",
                row=1,
                col=column,
            )
        marked = [e for e in drawn if e.number in account.front] or [e for e in drawn if e is account.best]
        figure.add_scatter(
            x=[entry.outcome.metrics[across] for entry in marked],
            y=[entry.outcome.metrics[up] for entry in marked],
            mode="markers",
            marker={"symbol": "circle-open", "size": 18, "line": {"width": 2.5}, "color": BEST},
            name="front" if account.front else "best",
            legendgroup="marked",
            showlegend=column == 1 and bool(marked),
            hoverinfo="skip",
            row=1,
            col=column,
        )
        figure.update_xaxes(title_text=METRICS[across].title, row=1, col=column)
        figure.update_yaxes(title_text=METRICS[up].title, row=1, col=column)
    figure.update_xaxes(tickvals=whole_ticks([entry.outcome.scores.active_units for entry in drawn]), col=3)
    for name, marker, entries in _groups(account, drawn):
        if entries:  # the legend cannot show a continuous colour
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
