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
            [_json(by_hyperparameter(account, drawn, keys)) for keys in _chunks(list(account.sweep.config.space))]
            if drawn
            else [],
        ),
        Section(
            "All at once",
            "A line is a trial. Drag along an axis to choose trials, drag its name to move it."
            if len(drawn) > 1
            else "Needs two trials.",
            [_json(parallel_coordinates(account, drawn))] if len(drawn) > 1 else [],
        ),
        Section(
            "KL and γ by epoch",
            "Validation KL and the weight γ of the KL term; dotted lines are λ, and where annealing ends."
            if curves
            else nothing,
            [_json(by_epoch(account, curves))] if curves else [],
        ),
        Section(
            "What −ELBO would have chosen",
            "On the dotted line −ELBO is NLL, as it is of a latent variable that is dead. One that tells something lies"
            " above it, and −ELBO holds that against it."
            if drawn
            else nothing,
            [_json(trade_off(account, drawn))] if drawn else [],
            by_elbo(account),
        ),
    ]
    return found


def _json(figure: go.Figure) -> str:
    # Within a page's script nothing may end it.
    return figure.to_json().replace("<", "\\u003c")


def _chunks(keys: list[str]) -> list[list[str]]:
    return [keys[i : i + _BESIDE] for i in range(0, len(keys), _BESIDE)]
