"""Rank the trials of a sweep.

−ELBO prefers collapse, so trials are compared by the importance-weighted NLL of validation sentences. A trial whose
latent is not alive, or whose KL is not near its λ, ranks behind all others.
"""

from __future__ import annotations

from dataclasses import dataclass

from distvae.config.schema import Config
from distvae.evaluation.liveness import latent_state, missing_information
from distvae.evaluation.metrics import METRICS, Direction
from distvae.evaluation.scores import Scores
from distvae.methods.policy import LatentState
from distvae.runs.records import EpochRecord
from distvae.sweeps.specification import ObjectiveConfig

# Score of a trial that misses a constraint by 0 nats: worse than any metric.
_BEHIND = 1e6


@dataclass(frozen=True)
class Outcome:
    """Validation scores of a trial, for the weights that it would keep if it ended now."""

    epoch: int  # of the VAE, whose weights are kept
    kl_weight: float
    target_rate: float | None  # λ in nats per sentence; None: the method has no λ
    scores: Scores

    @property
    def metrics(self) -> dict[str, float]:
        """The values of the metrics that were computed, by key."""
        values = {key: metric.value(self.scores) for key, metric in METRICS.items()}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def nll(self) -> float:
        """In nats per sentence."""
        return self.metrics["nll"]

    @property
    def neg_elbo(self) -> float:
        """In nats per sentence."""
        return self.scores.neg_elbo.mean

    @property
    def kl(self) -> float:
        """In nats per sentence."""
        return self.scores.kl.mean

    @property
    def mutual_information(self) -> float:
        """In nats."""
        return self.scores.mutual_information.mean

    @property
    def latent(self) -> LatentState | None:
        """State of the latent. None in a language model, or if a single sentence was scored."""
        if self.scores.language_model:
            return None
        return latent_state(self.kl, self.mutual_information, self.scores.sentences, self.target_rate)

    def kl_off(self, objective: ObjectiveConfig) -> float:
        """Return by how many nats the KL is outside its tolerance around λ; 0 without a λ or a tolerance."""
        if objective.kl_tolerance is None or self.target_rate is None:
            return 0.0
        return max(0.0, abs(self.kl - self.target_rate) - objective.kl_tolerance * self.target_rate)

    def violation(self, objective: ObjectiveConfig) -> float:
        """Return by how many nats the constraints are missed: KL outside its tolerance, plus missing information."""
        off = self.kl_off(objective)
        if not objective.require_alive or self.latent is None:
            return off
        return off + missing_information(self.kl, self.mutual_information, self.scores.sentences, self.target_rate)

    def shortcomings(self, objective: ObjectiveConfig) -> str:
        """Describe which constraints are missed; empty if none."""
        found = []
        if objective.require_alive and self.latent not in ("alive", None):
            found.append(f"its latent is {self.latent} (MI {self.mutual_information:.2f})")
        if self.kl_off(objective):
            found.append(f"its KL of {self.kl:.2f} is off (λ = {self.target_rate:g})")
        return " and ".join(found)


def outcome(config: Config, rows: list[EpochRecord]) -> Outcome | None:
    """Return the outcome of a run from its records (``read_metrics``), or None before the first epoch of the VAE."""
    row = kept(rows)
    if row is None:
        return None
    return Outcome(row.epoch, row.kl_weight, config.kl.rate, row.valid)


def kept(rows: list[EpochRecord]) -> EpochRecord | None:
    """Return the record of the epoch whose weights a run would keep if it ended now, or None before the VAE's first."""
    rows = [row for row in rows if row.stage == "train"]
    improved = [row for row in rows if row.verdict == "improved"]
    return next(reversed(improved or rows), None)


def is_over(config: Config, rows: list[EpochRecord]) -> bool:
    """Return whether the training of the VAE has ended, so that its last checkpoint leaves nothing to train."""
    last = next((row for row in reversed(rows) if row.stage == "train"), None)
    return last is not None and (last.epoch >= config.train.max_epochs or last.verdict == "stop")


def judged_epochs(config: Config, rows: list[EpochRecord]) -> int:
    """Return the number of epochs since annealing ended."""
    epochs: list[int] = [row.epoch for row in rows if row.stage == "train"]
    return max([epoch - config.kl.policy.warm_up for epoch in epochs] + [0])


def score(objective: ObjectiveConfig, found: Outcome, second: bool = False) -> float:
    """Return one number to compare trials by, in the direction of the objective (Deb, 2000).

    The score of a trial that meets the constraints is its metric. All other trials score worse than these, by how many
    nats they miss the constraints.

    Args:
        second: score by the second metric.
    """
    metric, mode = objective.goals[1 if second else 0]
    violation = found.violation(objective)
    if violation == 0:
        return found.metrics[metric]
    return _BEHIND + violation if mode == "min" else -_BEHIND - violation


def rank(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> list[int]:
    """Return trial numbers, best first; ties are in the order of their numbers."""
    sign = _sign(objective.mode)
    return sorted(outcomes, key=lambda number: (sign * score(objective, outcomes[number]), number))


def front(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> list[int]:
    """Return the numbers of the trials on the Pareto front of both metrics, in ascending order.

    Only trials that miss the constraints by the fewest nats can be on it. Otherwise a KL that is too high would pay for
    itself by a mutual information that is high too.
    """
    violations = {number: found.violation(objective) for number, found in outcomes.items()}
    least = min(violations.values(), default=0.0)
    points = {
        number: [_sign(mode) * found.metrics[metric] for metric, mode in objective.goals]
        for number, found in outcomes.items()
        if violations[number] == least
    }

    def beaten(point: list[float]) -> bool:
        return any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in points.values()
        )

    return sorted(number for number, point in points.items() if not beaten(point))


def why_not_best(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> str | None:
    """Explain why the trial with the best metric does not rank first, or return None if it does."""
    metric, sign = objective.metric, _sign(objective.mode)
    order = rank(objective, outcomes)
    leading = min(order, key=lambda number: sign * outcomes[number].metrics[metric], default=None)
    if leading is None or outcomes[order[0]].metrics[metric] == outcomes[leading].metrics[metric]:
        return None
    better = "lower" if sign == 1 else "higher"
    value = METRICS[metric].short(outcomes[leading].scores)
    return (
        f"trial {leading} has a {better} {METRICS[metric].title} ({value}), but"
        f" {outcomes[leading].shortcomings(objective)}: it ranks behind"
    )


def _sign(mode: Direction) -> int:
    """Return the factor that makes lower better."""
    return 1 if mode == "min" else -1
