"""The page: a map of the sentences of one model or two, and what to try with them. Everything runs on this machine."""

from __future__ import annotations

from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from plotly import graph_objects
from torch import Tensor

from distvae.explore.space import Space, groups
from distvae.system.errors import UserError
from distvae.system.plural import counted

# Dimensions with a slider, points of a walk, neighbours and samples.
SLIDERS, STEPS, NEIGHBOURS, SAMPLES = 6, 9, 6, 6

# Distinct on white and on black.
_COLOURS = (
    "#4c8bf5", "#f2994a", "#27ae60", "#eb5757", "#9b7bea", "#b9770e", "#e667af", "#8a8f98", "#b5b82a", "#21b6c8",
    "#7aa7ff", "#c9623f", "#5fb49c", "#d4a5f0", "#7f6b5d", "#3d9970", "#ff8fa3", "#5c7cfa", "#a0c15a", "#c2255c",
    "#20c997", "#e8590c", "#748ffc", "#868e96", "#adb5bd",
)  # fmt: skip
_PICKED = "#e5397f"

_MAP: dcc.Graph.Config = {
    "displaylogo": False,
    "scrollZoom": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}


def app(spaces: list[Space]) -> Dash:
    """Return the page of one model, or of two side by side."""
    page = Dash("distvae.explore", title="distvae explore", update_title="", serve_locally=True)
    page.layout = html.Main([
        html.Header([html.H1("Latent space"), html.P("Click a point, type two sentences, move the sliders.")]),
        dcc.Store(id="picked", data=spaces[0].sentences[0]),
        html.Section([
            _field("start", "From", spaces[0].sentences[0]), _field("end", "to", spaces[0].sentences[-1]),
            html.Button("Walk", id="walk", n_clicks=0),
            _slider("temperature", "Temperature", 0.0, 1.5, 0.0),
            html.Button("Draw again", id="draw", n_clicks=0),
        ], className="controls"),
        html.Div([_column(i, space) for i, space in enumerate(spaces)], className=f"columns of-{len(spaces)}"),
    ])  # fmt: skip
    # An initial call that changes nothing would keep the callbacks below from their own.
    page.callback(Output("picked", "data"), Input({"map": ALL}, "clickData"), prevent_initial_call=True)(_pick)
    for i, space in enumerate(spaces):
        _connect(page, i, space)
    return page


def _field(name: str, label: str, value: str) -> html.Label:
    return html.Label([label, dcc.Input(id=name, value=value, debounce=True, type="text", spellCheck=False)])


def _slider(name: Any, label: str, low: float, high: float, value: float) -> html.Div:
    marks = {low: f"{low:g}", high: f"{high:g}"}
    slider = dcc.Slider(
        low,
        high,
        0.1,
        value=value,
        id=name,
        marks=marks,
        updatemode="mouseup",
        allow_direct_input=False,
        included=False,
    )
    return html.Div([html.Span(label), slider], className="slider")


def _column(i: int, space: Space) -> html.Article:
    colours = list(space.columns)
    sliders = [
        _slider({"dimension": k, "run": i}, f"z{space.active[k]}", -3.0, 3.0, 0.0) for k in range(_sliders(space))
    ]
    choice = dcc.Dropdown(colours, colours[0], id=f"colour-{i}", clearable=False)
    left = html.Div([
        html.H2(space.name),
        html.P(_summary(space), className="summary"),
        html.Label(["Colour", choice], className="colour"),
        html.Div(dcc.Graph(id={"map": i}, config=_MAP, responsive=True, style={"height": "100%"}), className="map"),
        html.H3("Walk"), html.Ol(id=f"walk-{i}"),
    ])  # fmt: skip
    right = html.Div([
        html.H3("Sentence"), html.Div(id=f"sentence-{i}"),
        html.H3("Dimensions"), html.Div(id=f"moved-{i}", className="decoded"),
        html.Div(sliders or html.P("No dimension is active: the latent has collapsed.")),
        html.H3("Samples from the prior"), html.Ul(id=f"samples-{i}"),
    ])  # fmt: skip
    return html.Article([left, right])


def _sliders(space: Space) -> int:
    return min(SLIDERS, len(space.active))


def _summary(space: Space) -> str:
    parts = [counted(len(space.sentences), "sentence")]
    if space.model.results is not None:
        scores, latent = space.model.results.scores, space.model.results.latent
        parts += [f"KL {scores.kl.mean:.2f}", f"MI {scores.mutual_information.mean:.2f} nats"]
        parts += [f"{scores.active_units} of {space.mean.shape[1]} units active"]
        parts += [] if latent is None else [f"the latent is {latent.state}"]
    return "; ".join(parts)


def _pick(clicks: list[dict[str, Any] | None]) -> Any:
    """Return the sentence of the point that was clicked last."""
    found = clicks[ctx.triggered_id["map"]]
    return no_update if found is None else found["points"][0]["customdata"]


def _connect(page: Dash, i: int, space: Space) -> None:
    """Add what answers in the column of a model."""
    sliders = [Input({"dimension": k, "run": i}, "value") for k in range(_sliders(space))]

    @page.callback(Output({"map": i}, "figure"), Input(f"colour-{i}", "value"), Input("picked", "data"))
    def show_map(colour: str, picked: str) -> graph_objects.Figure:
        return map_of(space, colour, _point(space, picked))

    @page.callback(
        Output(f"sentence-{i}", "children"),
        *[Output(s.component_id, "value") for s in sliders],
        Input("picked", "data"),
    )
    def show_sentence(picked: str) -> Any:
        z = _point(space, picked)
        if isinstance(z, str):
            return [html.P(z, className="error"), *[no_update] * len(sliders)]
        near = space.neighbours(z, NEIGHBOURS + 1)
        described = html.Dl([
            html.Dt("text"), html.Dd(picked), html.Dt("reconstruction"), html.Dd(space.model.decode(z)[0]),
            *_values(space, next((n for n, _ in near if space.sentences[n] == picked), None)),
            html.Dt("neighbours"),
            html.Dd(html.Ul([
                html.Li([space.sentences[n], html.Small(f" {distance:.2f}")])
                for n, distance in near if space.sentences[n] != picked
            ][:NEIGHBOURS])),
        ])  # fmt: skip
        return [described, *[float(z[k].clamp(-3, 3)) for k in space.active[: len(sliders)]]]

    if sliders:

        @page.callback(Output(f"moved-{i}", "children"), *sliders, State("picked", "data"))
        def move(*values: Any) -> Any:
            z = _point(space, values[-1])
            if isinstance(z, str):
                return no_update
            moved = z.clone()
            for k, value in zip(space.active, values[:-1], strict=False):
                # A slider ends at ±3; a mean beyond it stays until the slider is moved.
                if abs(value - float(z[k].clamp(-3, 3))) > 1e-6:
                    moved[k] = value
            return space.model.decode(moved)[0]

    @page.callback(
        Output(f"walk-{i}", "children"), Input("walk", "n_clicks"), Input("start", "value"), Input("end", "value")
    )
    def walk(_: int, start: str, end: str) -> list[Any]:
        try:
            found = space.model.interpolate(start or "", end or "", STEPS)
        except UserError as error:
            return [html.Li(str(error), className="error")]
        return [html.Li(sentence) for sentence in found]

    @page.callback(Output(f"samples-{i}", "children"), Input("draw", "n_clicks"), Input("temperature", "value"))
    def sample(drawn: int, temperature: float) -> list[Any]:
        how: dict[str, Any] = {"method": "sample", "temperature": temperature} if temperature else {"method": "greedy"}
        return [html.Li(sentence) for sentence in space.model.sample(SAMPLES, seed=drawn, **how)]


def _point(space: Space, sentence: str) -> Tensor | str:
    """Return the posterior mean of a sentence; an error, as text, if the model cannot read it."""
    try:
        return space.encode(sentence)
    except UserError as error:
        return str(error)


def _values(space: Space, number: int | None) -> list[Any]:
    if number is None:
        return []
    found = []
    for name, values in space.columns.items():
        value = values[number]
        found += [html.Dt(name), html.Dd(f"{value:.3g}" if isinstance(value, float) else value or "–")]
    return found


def map_of(space: Space, colour: str, picked: Tensor | str) -> graph_objects.Figure:
    """Return the map, coloured by a column, with the picked point."""
    values, texts = space.columns[colour], [_short(sentence) for sentence in space.sentences]
    points = space.points.numpy()
    figure = graph_objects.Figure()

    def add(rows: list[int], name: str, marker: dict[str, Any]) -> None:
        figure.add_trace(graph_objects.Scattergl(
            x=points[rows, 0], y=points[rows, 1], mode="markers", name=name, text=[texts[r] for r in rows],
            customdata=[space.sentences[r] for r in rows], hovertemplate="%{text}<extra></extra>",
            marker={"size": 5, "opacity": 0.75, **marker},
        ))  # fmt: skip

    every = list(range(len(texts)))
    if any(isinstance(value, str) for value in values):
        named = groups([value if value is None else str(value) for value in values])
        names = sorted({value for value in named if value is not None}, key=lambda name: (name == "other", name))
        for k, name in enumerate(names):
            rows = [r for r in every if named[r] == name]
            add(rows, name, {"color": _COLOURS[k % len(_COLOURS)]})
        add([r for r in every if named[r] is None], "no label", {"color": "#8a8f98"})
    else:
        scale = {
            "color": values,
            "colorscale": "Viridis",
            "showscale": True,
            "colorbar": {"title": colour, "thickness": 12},
        }
        add(every, colour, scale)
    if isinstance(picked, Tensor):
        x, y = space.project(picked[None])[0].tolist()
        ring = {"size": 18, "color": "rgba(0,0,0,0)", "line": {"width": 4, "color": _PICKED}}
        figure.add_trace(
            graph_objects.Scattergl(x=[x], y=[y], mode="markers", marker=ring, hoverinfo="skip", showlegend=False)
        )
    hidden = {"visible": False}
    figure.update_layout(
        xaxis=hidden, yaxis=hidden | {"scaleanchor": "x"}, margin={"l": 0, "r": 0, "t": 0, "b": 0}, dragmode="pan",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", uirevision=space.name, hovermode="closest",
        showlegend=len(figure.data) > 2,
        legend={"itemsizing": "constant", "font": {"size": 11}, "orientation": "h", "y": 0},
    )  # fmt: skip
    return figure


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= 100 else sentence[:99] + "…"
