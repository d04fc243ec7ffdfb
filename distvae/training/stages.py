"""The stages of a run (paper, Algorithm 1), and how far each has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from distvae.config.schema import Config
from distvae.evaluation.scores import Scores
from distvae.methods.annealing import Constant
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.lagging import Joint, Turns
from distvae.methods.objective import Objective
from distvae.runs.checkpoints import Weights
from distvae.training.plateau import Plateau
from distvae.training.step import Sums


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own learning rate, counters and best weights."""

    name: Literal["pretrain", "train"]
    number: int
    max_epochs: int
    objective: Objective
    turns: Turns
    autoencoder: bool  # γ stays 0: judged by RE alone

    def loss(self, scores: Scores) -> float:
        """Return the validation loss in nats per sentence: −ELBO with weight 1, whatever γ is."""
        return scores.re.mean if self.autoencoder else scores.neg_elbo.mean


def stages_of(config: Config, device: torch.device) -> list[Stage]:
    """Return the stages that a config asks for.

    Args:
        device: of the training steps.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    stages = []
    if config.pretrain.max_epochs and config.pretrained is None:
        objective = Objective(Constant(weight=0.0), NoFreeBits(), device)
        stages.append(Stage("pretrain", 0, config.pretrain.max_epochs, objective, Joint().start(sums), True))
    if config.train.max_epochs:
        kl = config.kl
        objective = Objective(kl.policy, kl.free_bits, device)
        turns = config.inference.training.start(sums)
        stages.append(Stage("train", 1, config.train.max_epochs, objective, turns, kl.policy.autoencoder))
    return stages


@dataclass(frozen=True)
class Best:
    """The best weights of a stage, and the γ they were trained with."""

    weights: Weights
    epoch: int
    kl_weight: float
    passed_over: int = 0  # later epochs that could not be the best

    def passed(self) -> Best:
        """Return it after one more epoch that could not be the best."""
        return Best(self.weights, self.epoch, self.kl_weight, self.passed_over + 1)


@dataclass
class StageProgress:
    """How far a stage has come."""

    plateau: Plateau
    epoch: int = 0  # epochs that have ended
    converged: bool = False
    best: Best | None = None
    warmed: int = 0  # steps since the optimizer's moments were reset


@dataclass
class GradientNorms:
    """Mean norm of an epoch's gradients before clipping. Steps that were skipped are left out."""

    total: float = 0.0
    steps: int = 0

    def add(self, norms: list[torch.Tensor]) -> None:
        """Move the norms of the last steps, scalars on the device, into the sum. Waits for the device."""
        for norm in torch.stack(norms).tolist() if norms else []:
            if math.isfinite(norm):
                self.total += norm
                self.steps += 1
        norms.clear()

    @property
    def mean(self) -> float | None:
        return self.total / self.steps if self.steps else None


@dataclass
class EpochProgress:
    """How far an epoch has come."""

    sums: Sums
    batches: int = 0  # trained so far
    encoder_steps: int = 0  # beside them, of the encoder alone
    seconds: float = 0.0  # spent on them
    norms: GradientNorms = field(default_factory=GradientNorms)
    save: bool = False  # as soon as all ranks hold the same model
    stop: bool = False  # likewise
