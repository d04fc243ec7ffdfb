"""The content of a sweep file, without its search space."""

from __future__ import annotations

from dataclasses import field as plain_field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as checked

from distvae.sweeps.space import Dimension
from distvae.system.settings import RULES, AboveZero, Count, Folder, OpenUnit, Positive, Seed

# What a trial can be judged by, and which way is better.
METRICS: dict[str, Literal["min", "max"]] = {
    "nll": "min",
    "ppl": "min",
    "neg_elbo": "min",
    "re": "min",
    "kl": "max",
    "mutual_information": "max",
    "active_units": "max",
}


@checked(frozen=True, config=RULES)
class ObjectiveConfig:
    """What makes one trial better than another."""

    metric: Literal["nll", "ppl", "neg_elbo", "re", "kl", "mutual_information", "active_units"] = "nll"
    # Null: the metric's own (an NLL should be low, a mutual information high).
    direction: Literal["min", "max"] | None = None
    # A trial that misses a constraint is worse than any that meets them all, and of two such the one that misses by
    # more nats is worse. The KL should lie within this share of λ, where the trial's method has a λ. Null: the KL may
    # be anything. (It is no β: β may be swept.)
    kl_tolerance: OpenUnit | None = 0.1
    # The latent should be alive: have a mutual information of half its KL and half of λ (docs/measures.md). A KL near λ
    # does not make it so.
    require_alive: bool = True
    # A second metric: the trials are then judged by both, and none is the best.
    second: Literal["nll", "ppl", "neg_elbo", "re", "kl", "mutual_information", "active_units"] | None = None
    # K of the NLL while training. A small one leans to collapse too.
    importance_samples: Annotated[int, Field(ge=50, le=100_000)] = 50

    @model_validator(mode="after")
    def _two_metrics(self):
        if self.second == self.metric:
            raise ValueError(f"objective.second = {self.second}: is the metric already")
        return self

    @property
    def mode(self) -> Literal["min", "max"]:
        return self.direction or METRICS[self.metric]

    @property
    def second_mode(self) -> Literal["min", "max"]:
        return METRICS[self.second]


@checked(frozen=True, config=RULES)
class SchedulerConfig:
    """What becomes of trials under way. Epochs count from the end of annealing: before it nothing can be judged."""

    # `asha` ends the worse of them early (Li et al., 2020), `pbt` has them go on from the better ones (Jaderberg et
    # al., 2017).
    name: Literal["none", "asha", "pbt"] = "none"
    # Epochs that every trial gets (asha), or after which they are compared for the first time (pbt).
    grace_epochs: Positive = 3
    # asha: a trial in this many gets this many times the epochs.
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = 3
    # pbt: epochs from one comparison to the next.
    interval_epochs: Positive = 2
    # pbt: the share of the trials that go on from as many of the best.
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    # pbt: how often a value is drawn anew, and not moved by a fifth.
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25


@checked(frozen=True, config=RULES)
class TrialConfig:
    """What each trial gets."""

    # Processes, which may lie on several nodes; data-parallel as in any run.
    workers: Annotated[int, Field(ge=1, le=65536)] = 1
    # Of each process; several share a core under 1. Above 1 they are whole.
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    # Of each process; several trials share a GPU under 1. Null: 1 where there are GPUs, else 0.
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _whole_cores(self):
        if self.cpus > 1 and self.cpus != int(self.cpus):
            raise ValueError(f"trial.cpus = {self.cpus:g}: should be whole above 1")
        return self

    @property
    def threads(self) -> int:
        """Of each process."""
        return max(1, int(self.cpus))


@checked(frozen=True, config=RULES)
class FinalistsConfig:
    """The best trials, which are scored again, on validation and test sentences."""

    count: Count = 3
    importance_samples: Positive = 500


@checked(frozen=True, config=RULES)
class StopConfig:
    """When a sweep ends before its trials have."""

    # Hours from the first start, all starts together. Null: none.
    hours: AboveZero | None = None
    # Trials that have failed. Null: any number.
    failed: Positive | None = None


@checked(frozen=True, config=RULES)
class SweepConfig:
    # The training config that the trials start from.
    base: Folder
    # Keys of it and their values, each alone: `kl.target_rate: {grid: [2, 4, 8]}`.
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    # The sweep's folder. Null: runs/ and the file's path below configs/.
    run: Folder | None = None
    # Keys that have another value in all trials than in `base`.
    set: dict[str, Any] = plain_field(default_factory=dict)
    # `random` (and grids), or `optuna`: a tree-structured Parzen estimator (Bergstra et al., 2011), which learns from
    # the trials before.
    search: Literal["random", "optuna"] = "random"
    # Trials; of a space with grids, for each point of them.
    num_samples: Positive = 1
    # Of the draws from the space. Trials train by the base's own seed.
    seed: Seed = 0
    objective: ObjectiveConfig = plain_field(default_factory=ObjectiveConfig)
    scheduler: SchedulerConfig = plain_field(default_factory=SchedulerConfig)
    trial: TrialConfig = plain_field(default_factory=TrialConfig)
    # Trials side by side. Null: as many as there is room for.
    max_concurrent: Positive | None = None
    finalists: FinalistsConfig = plain_field(default_factory=FinalistsConfig)
    # How often a trial whose process was lost is started again. Bad input and bad numbers are not tried again.
    max_restarts: Count = 3
    stop: StopConfig = plain_field(default_factory=StopConfig)


# Keys of a sweep that may differ when it goes on.
MAY_CHANGE = {"base", "run", "max_concurrent", "finalists", "stop"}
