"""The training step: one optimizer step on a global batch.

The trainer, ``scaling measure`` and the benchmarks share it. It needs a runtime and an engine, but no run folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distvae.config.schema import Config
from distvae.data.batches import Batch, collate, share
from distvae.data.sentences import Sentences, Shards
from distvae.distributed.engines.base import Engine, gradient_of, set_moving
from distvae.distributed.graphs import Compute, GraphedSteps
from distvae.distributed.runtime import Runtime
from distvae.methods.kl import kl_per_dimension
from distvae.methods.lagging import Part
from distvae.methods.objective import LEADING, Objective
from distvae.model import draws
from distvae.model.draws import Noise
from distvae.runs.records import TrainEpoch
from distvae.system.errors import UserError


class StepResult(NamedTuple):
    """What a step returns, on the device."""

    sums: Tensor  # [micro-batches, 3 + m] over this rank's sentences, a row of ``Sums`` each; 0 if the step was skipped
    norm: Tensor  # scalar, the gradient's global norm before clipping; not finite if the step was skipped


class TrainStep:
    """Callable that makes one optimizer step on a global batch. Every rank calls it with the same batch.

    Args:
        engine: holds the model and its optimizer.
        pad: id of the padding.
        graphs: replays steps as CUDA graphs; None runs them eagerly.
    """

    def __init__(self, runtime: Runtime, engine: Engine, config: Config, pad: int, graphs: GraphedSteps | None = None):
        self.runtime, self.engine, self._config, self._pad, self._graphs = runtime, engine, config, pad, graphs
        # Micro-batches with a backward of their own, and those within one.
        self._micros = config.backwards
        self._within = config.optimizer.accumulation_steps // self._micros
        self._parts = runtime.world_size * self._micros

    def __call__(
        self,
        split: Sentences | Shards,
        batch: np.ndarray,
        key: tuple[str | int, ...],
        objective: Objective,
        moves: Part = "all",
    ) -> StepResult:
        """Forward, backward and update. Minimises the objective over the global batch.

        Args:
            split: the sentences that ``batch`` refers to.
            batch: sentence numbers of the global batch, [B].
            key: stage, epoch and step in the epoch: with the seed they set the draws.
            objective: also learns the step's KL, if its γ reacts to it and the decoder moves.
            moves: the part of the model to update.
        """
        set_moving(self.engine, moves)
        size = len(batch)
        batches = [
            collate(split, batch, share(size, self.runtime.rank * self._micros + micro, self._parts), self._pad)
            for micro in range(self._micros)
        ]
        batch_mean = None
        if objective.needs_batch_mean and self._micros > 1:
            batch_mean = self._batch_mean(batches, size)
        own = share(size, self.runtime.rank, self.runtime.world_size)
        if own.stop == own.start:
            own = batches[0].rows  # the dummy's
        noise = self.noise(own, size, int(split.lengths_of(batch).max()) - 1, *key)
        rows = []
        for micro in batches:
            # A dummy beside sentences uses the first one's draws, because it counts nothing.
            start = micro.rows.start - own.start if micro.count else 0
            drawn = noise.rows(slice(start, start + len(micro.tokens)))
            compute = self._compute(micro.count, size, objective, batch_mean)
            inputs = {
                "tokens": self._on_device(micro.tokens),
                "lengths": self._on_device(micro.lengths),
            } | {name: value for name, value in vars(drawn).items() if value is not None}
            with self.runtime.accelerator.accumulate(self.engine.module):
                if self._graphs is not None and size == self._config.optimizer.batch_size:
                    rows.append(self._graphs(key[0], compute, inputs))
                else:
                    rows.append(compute(**inputs))
        norm, sums = self.engine.step(), torch.stack(rows)
        finite = torch.isfinite(norm)
        if objective.needs_step_kl and moves != "encoder":
            objective.gamma.end_step(self._step_kl(sums, finite, size))
        if self.engine.carrier is not None:
            self.engine.carrier.grad = None  # which no optimizer clears
        return StepResult(torch.where(finite, sums, 0), norm)

    def noise(self, rows: slice, size: int, steps: int, *key: int | str) -> Noise:
        """Draw the noise of a global batch of ``size`` sentences and T = ``steps``, and return some of its rows."""
        return draws.training_noise(self._config.model, rows, size, steps, self.runtime.device, self._config.seed, *key)

    def reset(self) -> None:
        """Forget recorded CUDA graphs, because a new stage begins."""
        if self._graphs is not None:
            self._graphs.clear()

    def _compute(self, count: int, size: int, objective: Objective, batch_mean: Tensor | None) -> Compute:
        """Return a micro-batch's forward and backward: (tokens, lengths, noise) → its row of sums.

        Args:
            count: number of sentences that count, the first ones.
            size: of the global batch.
            batch_mean: [m], if the objective needs it and this micro-batch is not the rank's whole share.
        """

        def compute(tokens: Tensor, lengths: Tensor, **noise: Tensor) -> Tensor:
            re, mean, log_variance = self.engine.module(tokens, lengths, Noise(**noise), count, self._within)
            # Leave a dummy out by selection: 0 × its value could be NaN.
            re, kl = re[:count], kl_per_dimension(mean, log_variance)[:count]
            bound = batch_mean
            if objective.needs_batch_mean and bound is None:
                bound = self.runtime.sum(kl.detach().sum(dim=0)) / size
            loss, sums = objective.loss(re, kl, bound)
            # Engines average over ranks and micro-batches, so this scale gives the mean over the global batch. A loss
            # that is not finite makes every gradient NaN, and with it the norm on all ranks.
            scale = torch.where(loss.detach().isfinite(), self._parts / size, math.nan)
            scaled = loss * scale
            if self.engine.carrier is not None:
                scaled = scaled + self.engine.carrier[0] * (sums[LEADING:].sum() * scale)
            self.runtime.accelerator.backward(scaled)
            return sums

        return compute

    def _step_kl(self, sums: Tensor, finite: Tensor, size: int) -> Tensor:
        """Return the global batch's mean KL in nats per sentence, a scalar on the device; NaN if a rank skips the step.

        One collective, unless the gradients have carried it.
        """
        if self.engine.carrier is None:
            return self.runtime.sum(torch.where(finite, sums[:, LEADING:].sum(), math.nan)) / size
        return torch.where(finite, gradient_of(self.engine.carrier)[0], math.nan)

    @torch.no_grad()
    def _batch_mean(self, batches: list[Batch], size: int) -> Tensor:
        """Return the global batch's mean KL per dimension [m], which the first micro-batch's gradient needs.

        One collective.
        """
        total = torch.zeros(self._config.model.latent_size, device=self.runtime.device)
        for batch in batches:
            _, *posterior = self.engine.module(self._on_device(batch.tokens), self._on_device(batch.lengths))
            total += kl_per_dimension(*posterior)[: batch.count].sum(dim=0)
        return self.runtime.sum(total) / size

    def _on_device(self, values: Tensor) -> Tensor:
        if self.runtime.device.type == "cuda":
            # The host does not wait for a copy from pinned memory.
            return values.pin_memory().to(self.runtime.device, non_blocking=True)
        return values


def graphed_steps(runtime: Runtime, parameters: Sequence[torch.nn.Parameter], accumulation_steps: int) -> GraphedSteps:
    """Return what replays steps as CUDA graphs (``speed.cuda_graphs``).

    Raises:
        UserError: this is not a single process on a GPU without accumulation.
    """
    if runtime.device.type != "cuda" or runtime.engine != "alone" or accumulation_steps > 1:
        raise UserError(
            "speed.cuda_graphs needs a single process on a GPU and optimizer.accumulation_steps=1, not"
            f" {runtime.processes} on {runtime.device.type} with {accumulation_steps}"
        )
    return GraphedSteps(parameters)


class Sums:
    """An epoch's sums over this rank's sentences, as one float64 row on the device.

    ``row`` holds the number of sentences, RE, the objective, the KL of each dimension, and then the number of sentences
    and the KL at the end of the last γ interval.
    """

    def __init__(self, latent_size: int, device: torch.device):
        self.row = torch.zeros(LEADING + latent_size + 2, dtype=torch.float64, device=device)
        self.totals, self._mark = self.row[:-2], self.row[-2:]

    def add(self, sums: Tensor) -> None:
        """Add a step's ``StepResult.sums``."""
        for row in sums:
            self.totals += row

    def end_interval(self, runtime: Runtime) -> float:
        """Return the mean KL over all ranks since the last call, in nats per sentence: one collective."""
        now = torch.stack([self.totals[0], self.totals[LEADING:].sum()])
        sentences, kl = runtime.sum(now - self._mark).tolist()
        self._mark.copy_(now)
        return float(kl / sentences) if sentences else math.nan

    def means(self, runtime: Runtime, sentences: int, seconds: float) -> TrainEpoch | None:
        """Return the epoch's means over all ranks, or None if every step was skipped: one collective.

        Args:
            sentences: number of sentences in the epoch, over all ranks.
            seconds: how long they took.
        """
        total, re, objective, *kl = runtime.sum(self.totals.clone()).tolist()
        count = round(total)
        if count == 0:
            return None
        mean_kl = sum(kl) / count
        return TrainEpoch(
            re=re / count,
            kl=mean_kl,
            neg_elbo=re / count + mean_kl,
            objective=objective / count,
            kl_per_dimension=tuple(value / count for value in kl),
            sentences=count,
            skipped=sentences - count,
            seconds=seconds,
        )

    def running(self) -> dict[str, float]:
        """Return this rank's mean RE and KL so far, in nats per sentence."""
        sentences, re, _, *kl = self.totals.tolist()
        return {"RE": re / max(sentences, 1), "KL": sum(kl) / max(sentences, 1)}
