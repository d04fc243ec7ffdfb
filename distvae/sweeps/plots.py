"""The plots of a sweep report."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from distvae.sweeps.account import Account
from distvae.sweeps.figures import by_epoch, by_hyperparameter, parallel_coordinates, trade_off
from distvae.sweeps.summary import by_elbo

# Panels in a row.
_BESIDE = 3


@dataclass(frozen=True)
class PlotSection:
    """Figures under a heading."""

    title: str
    text: str
    figures: list[str]  # JSON
    remark: str | None = None


def sections(account: Account) -> list[PlotSection]:
    """Return the sections of the report; the text of one without figures explains why."""
    drawn = [entry for entry in account.scored if entry.trial.state != "failed"]
    curves = account.scored
    nothing = "No trial has recorded an epoch of the VAE yet."
    found = [
        PlotSection(
            "NLL and KL by hyperparameter",
            "Validation sentences. Short grey lines are each trial's λ; a KL should be near it." if drawn else nothing,
            [_json(by_hyperparameter(account, drawn, keys)) for keys in _chunks(list(account.sweep.config.space))]
            if drawn
            else [],
        ),
        PlotSection(
            "All at once",
            "A line is a trial. Drag along an axis to choose trials, drag its name to move it."
            if len(drawn) > 1
            else "Needs two trials.",
            [_json(parallel_coordinates(account, drawn))] if len(drawn) > 1 else [],
        ),
        PlotSection(
            "KL and γ by epoch",
            "Validation KL and the weight γ of the KL term; dotted lines are λ, and where annealing ends."
            if curves
            else nothing,
            [_json(by_epoch(account, curves))] if curves else [],
        ),
        PlotSection(
            "What −ELBO would have chosen",
            "On the dotted line −ELBO equals NLL, as it does for a dead latent. An informative latent is above it, so"
            " −ELBO ranks it worse."
            if drawn
            else nothing,
            [_json(trade_off(account, drawn))] if drawn else [],
            by_elbo(account),
        ),
    ]
    return found


def _json(figure: go.Figure) -> str:
    # `<` could end the script element that holds the JSON.
    return str(figure.to_json()).replace("<", "\\u003c")


def _chunks(keys: list[str]) -> list[list[str]]:
    return [keys[i : i + _BESIDE] for i in range(0, len(keys), _BESIDE)]
