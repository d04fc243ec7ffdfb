"""The content of a sweep file. ``space`` has the dimensions of its search space."""

from __future__ import annotations

from dataclasses import field as plain_field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass as checked
from pydantic_core import PydanticCustomError

from distvae.evaluation.metrics import METRICS, Direction, Metric
from distvae.sweeps.space import Dimension
from distvae.system.roles import Role
from distvae.system.settings import RULES, AboveZero, Count, Folder, OpenUnit, Positive, Seed


def _ranks_trials(key: str) -> str:
    if key not in METRICS or METRICS[key].better is None:
        *names, last = (repr(metric.key) for metric in METRICS.values() if metric.better is not None)
        raise PydanticCustomError("metric", f"input should be {', '.join(names)} or {last}")
    return key


# Key of a metric that can rank trials.
MetricKey = Annotated[str, AfterValidator(_ranks_trials)]


def _direction(key: str) -> Direction:
    """Return which direction is better."""
    better = METRICS[key].better
    if better is None:
        raise ValueError(f"{key} cannot rank trials")
    return better


@checked(frozen=True, config=RULES)
class ObjectiveConfig:
    """How trials are ranked."""

    metric: MetricKey = "nll"
    # Null: the metric's own direction (lower for an NLL, higher for a mutual information).
    direction: Direction | None = None
    # A trial that misses a constraint ranks behind every trial that meets them all, by how many nats it misses. First
    # constraint: the KL is within this share of λ, if the trial's method has a λ. Null: any KL. (This is not β, which
    # may be swept.)
    kl_tolerance: OpenUnit | None = 0.1
    # Second constraint: the latent is alive, that is, its mutual information is at least half the KL and half of λ
    # (docs/measures.md). A KL near λ does not make a latent alive.
    require_alive: bool = True
    # Optimize a second metric as well. There is then no best trial, but a Pareto front.
    second: MetricKey | None = None
    # K of the NLL during training. A small K favours collapse too.
    importance_samples: Annotated[int, Field(ge=50, le=100_000)] = 50

    @model_validator(mode="after")
    def _two_metrics(self) -> ObjectiveConfig:
        if self.second == self.metric:
            raise ValueError(f"objective.second = {self.second}: should differ from objective.metric")
        return self

    @property
    def mode(self) -> Direction:
        """The direction of ``metric``."""
        return self.direction or _direction(self.metric)

    @property
    def goals(self) -> list[tuple[str, Direction]]:
        """The keys of the metrics to optimize, one or two, with their directions."""
        return [(self.metric, self.mode), *([] if self.second is None else [(self.second, _direction(self.second))])]

    @property
    def titles(self) -> list[str]:
        """The titles of the metrics to optimize."""
        return [METRICS[key].title for key, _ in self.goals]

    @property
    def shown(self) -> list[Metric]:
        """The metrics to show of every trial, the NLL first."""
        shown = [m for m in METRICS.values() if m.in_sweeps or m.key in (self.metric, self.second)]
        return sorted(shown, key=lambda metric: metric.key != "nll")

    @property
    def second_mode(self) -> Direction:
        """The direction of the last metric."""
        return self.goals[-1][1]


@checked(frozen=True, config=RULES)
class SchedulerConfig:
    """Which trials end early. Epochs count from the end of annealing, because a trial cannot be ranked before."""

    # `asha` ends the worse trials early (Li et al., 2020). `pbt` replaces them by continuations of the better ones
    # (population-based training, Jaderberg et al., 2017).
    name: Literal["none", "asha", "pbt"] = "none"
    # asha: epochs that every trial gets. pbt: epochs before the first comparison.
    grace_epochs: Positive = 3
    # asha: one trial in this many continues, for this many times the epochs.
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = 3
    # pbt: epochs between comparisons.
    interval_epochs: Positive = 2
    # pbt: share of the trials that is replaced by continuations of as many of the best.
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    # pbt: probability of drawing a value again, rather than changing it by a fifth.
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25


@checked(frozen=True, config=RULES)
class TrialConfig:
    """The resources of a trial."""

    # Data-parallel processes, which may run on several nodes.
    workers: Annotated[int, Field(ge=1, le=65536)] = 1
    # CPUs of each process. Below 1, processes share a core. Above 1, an integer.
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    # GPUs of each process. Below 1, trials share a GPU. Null: 1 if there are GPUs, else 0.
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _whole_cores(self) -> TrialConfig:
        if self.cpus > 1 and self.cpus != int(self.cpus):
            raise ValueError(f"trial.cpus = {self.cpus:g}: should be whole above 1")
        return self

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return max(1, int(self.cpus))


@checked(frozen=True, config=RULES)
class FinalistsConfig:
    """The best trials are scored again, on validation and test sentences."""

    count: Count = 3
    importance_samples: Positive = 500


@checked(frozen=True, config=RULES)
class StopConfig:
    """When a sweep ends before all trials have ended."""

    # Hours since the sweep began, over all attempts. Null: no limit.
    hours: AboveZero | None = None
    # Number of failed trials. Null: no limit.
    failed: Positive | None = None


@checked(frozen=True, config=RULES)
class SweepConfig:
    # The training config that the trials start from.
    base: Annotated[Folder, Role.SOURCE]
    # Config keys and their values: `kl.target_rate: {grid: [2, 4, 8]}`.
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    # The sweep folder. Null: runs/ and the file's path below configs/.
    run: Annotated[Folder, Role.PLACE]
    # Config keys that differ from `base` in all trials.
    set: dict[str, Any] = plain_field(default_factory=dict)
    # `random` draws values and lists grids. `optuna` learns from earlier trials by a tree-structured Parzen estimator
    # (Bergstra et al., 2011).
    search: Literal["random", "optuna"] = "random"
    # Number of trials; with grids, for each point of the grids.
    num_samples: Positive = 1
    # Seed of the draws from the space. Trials train with the seed of `base`.
    seed: Seed = 0
    objective: ObjectiveConfig = plain_field(default_factory=ObjectiveConfig)
    scheduler: SchedulerConfig = plain_field(default_factory=SchedulerConfig)
    trial: TrialConfig = plain_field(default_factory=TrialConfig)
    # Most trials to run at once. Null: as many as fit.
    max_concurrent: Annotated[Positive | None, Role.PLACE] = None
    finalists: Annotated[FinalistsConfig, Role.EXTENT] = plain_field(default_factory=FinalistsConfig)
    # How often to restart a trial whose process was lost. User errors and non-finite numbers are not retried.
    max_restarts: Count = 3
    stop: Annotated[StopConfig, Role.EXTENT] = plain_field(default_factory=StopConfig)
