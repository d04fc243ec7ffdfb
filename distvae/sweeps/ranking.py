"""Rank the trials of a sweep.

−ELBO prefers collapse, so trials are compared by the importance-weighted NLL of validation sentences. A trial whose
latent is not alive, or whose KL is not near its λ, ranks behind all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distvae.config.schema import Config
from distvae.evaluation.liveness import LatentState, latent_state, missing_information
from distvae.sweeps.labels import NAMES
from distvae.sweeps.specification import METRICS, ObjectiveConfig

# Greater than any score: how far a trial that misses a constraint ranks behind those that meet all.
_BEHIND = 1e6


@dataclass(frozen=True)
class Outcome:
    """What a trial comes to if it ends now: scores of the validation sentences, by the weights that it would keep."""

    epoch: int  # of the stage, that these are of
    kl_weight: float
    target_rate: float | None  # None: the method has no λ
    sentences: int  # that were scored
    nll: float
    ppl: float
    neg_elbo: float
    re: float
    kl: float
    mutual_information: float
    active_units: int

    @property
    def latent(self) -> LatentState | None:
        """Whether the latent is alive; None where that cannot be told."""
        return latent_state(self.kl, self.mutual_information, self.sentences, self.target_rate)

    def kl_off(self, objective: ObjectiveConfig) -> float:
        """Nats by which the KL is further from λ than its tolerance; 0 without a λ or a tolerance."""
        if objective.kl_tolerance is None or self.target_rate is None:
            return 0.0
        return max(0.0, abs(self.kl - self.target_rate) - objective.kl_tolerance * self.target_rate)

    def violation(self, objective: ObjectiveConfig) -> float:
        """Nats by which the constraints are missed: of KL beyond its tolerance, and of information that is lacking."""
        missing = missing_information(self.kl, self.mutual_information, self.sentences, self.target_rate)
        return self.kl_off(objective) + (missing if objective.require_alive else 0.0)

    def shortcomings(self, objective: ObjectiveConfig) -> str:
        """Which constraints are missed, in words; empty where none is."""
        found = []
        if objective.require_alive and self.latent not in ("alive", None):
            found.append(f"its latent is {self.latent} (MI {self.mutual_information:.2f})")
        if self.kl_off(objective):
            found.append(f"its KL of {self.kl:.2f} is off (λ = {self.target_rate:g})")
        return " and ".join(found)


def outcome(config: Config, rows: list[dict[str, Any]]) -> Outcome | None:
    """What the records of a run (``tracking.read_metrics``) come to; None before the VAE has had an epoch."""
    row = kept(rows)
    if row is None:
        return None
    valid = row["valid"]
    return Outcome(
        epoch=row["epoch"],
        kl_weight=row["kl_weight"],
        target_rate=config.kl.rate,
        sentences=valid["sentences"],
        active_units=valid["active_units"],
        **{name: valid[name]["mean"] for name in METRICS if name != "active_units"},
    )


def kept(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the epoch whose weights a run would keep if it ended now; None before the VAE has had one."""
    rows = [row for row in rows if row["stage"] == "train"]
    improved = [row for row in rows if row["verdict"] == "improved"]
    return next(reversed(improved or rows), None)


def is_over(config: Config, rows: list[dict[str, Any]]) -> bool:
    """Whether the training of the VAE has ended, so that nothing is left to train from its last checkpoint."""
    last = next((row for row in reversed(rows) if row["stage"] == "train"), None)
    return last is not None and (last["epoch"] >= config.train.max_epochs or last["verdict"] == "stop")


def judged_epochs(config: Config, rows: list[dict[str, Any]]) -> int:
    """Epochs since annealing has ended."""
    return max([row["epoch"] - config.kl.policy.warm_up for row in rows if row["stage"] == "train"] + [0])


def score(objective: ObjectiveConfig, found: Outcome, second: bool = False) -> float:
    """One number to compare trials by, in the objective's direction (Deb, 2000): the metric, or the second one, of a
    trial that meets the constraints; any other trial is behind all those, by how much it misses them."""
    metric, mode = (objective.second, objective.second_mode) if second else (objective.metric, objective.mode)
    violation = found.violation(objective)
    if violation == 0:
        return float(getattr(found, metric))
    return _BEHIND + violation if mode == "min" else -_BEHIND - violation


def rank(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> list[int]:
    """The numbers of trials, the best first."""
    sign = 1 if objective.mode == "min" else -1
    return sorted(outcomes, key=lambda number: (sign * score(objective, outcomes[number]), number))


def front(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> list[int]:
    """Of two objectives: the trials that no other beats in both, in the order of their numbers. A trial that misses the
    constraints is beaten by any that misses them by less: else a KL that is too high would buy its way in by an
    information that is high too."""
    signs = (1 if objective.mode == "min" else -1, 1 if objective.second_mode == "min" else -1)
    violations = {number: found.violation(objective) for number, found in outcomes.items()}
    least = min(violations.values(), default=0.0)
    points = {
        number: (signs[0] * getattr(found, objective.metric), signs[1] * getattr(found, objective.second))
        for number, found in outcomes.items()
        if violations[number] == least
    }

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in points.values()
        )

    return sorted(number for number, point in points.items() if not beaten(point))


def why_not_best(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> str | None:
    """Why the trial with the best metric does not rank first; None if it does."""
    sign = 1 if objective.mode == "min" else -1
    order = rank(objective, outcomes)
    leading = min(order, key=lambda number: sign * getattr(outcomes[number], objective.metric), default=None)
    if leading is None or not sign * (
        getattr(outcomes[order[0]], objective.metric) - getattr(outcomes[leading], objective.metric)
    ):
        return None
    name, value = NAMES[objective.metric], getattr(outcomes[leading], objective.metric)
    better = "lower" if sign == 1 else "higher"
    return (
        f"trial {leading} has a {better} {name} ({value:.2f}), but {outcomes[leading].shortcomings(objective)}: it"
        " ranks behind"
    )
