"""Aggressive training of the inference network (He et al., 2019, «Lagging Inference Networks and Posterior Collapse in
Variational Autoencoders»): the encoder trains alone until it has caught up with the decoder, before each decoder step.

It goes with any γ policy. The details are those of the authors' program (``text.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass as state
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from distvae.system.settings import RULES, Positive

if TYPE_CHECKING:  # a config needs the options alone, and PyTorch takes a second to import
    from torch import Tensor

# What a step moves.
Part = Literal["all", "encoder", "decoder"]


@dataclass(frozen=True, config=RULES)
class Joint:
    """Encoder and decoder move together in every step."""

    name: Literal["joint"] = "joint"

    label: ClassVar[str] = ""  # in tables
    apart: ClassVar[bool] = False  # whether some steps move a part of the model only

    def start(self, sums: Tensor) -> Turns:
        """Return the turns of a stage before its first step.

        Args:
            sums: zeros, [2], float64, on the device.
        """
        return Turns(sums, None)


@dataclass(frozen=True, config=RULES)
class Aggressive:
    """Before each step of the decoder alone, the encoder alone makes steps on further batches (He et al., 2019).

    It makes them while their loss falls. Once the validation mutual information falls, both move together for good.
    """

    name: Literal["aggressive"] = "aggressive"
    # Most encoder steps before a decoder step.
    max_steps: Positive = 99
    # Encoder steps whose mean loss per token is compared with that of as many before.
    check_every: Positive = 15

    label: ClassVar[str] = "Aggressive"
    apart: ClassVar[bool] = True

    def start(self, sums: Tensor) -> Turns:
        """Return the turns of a stage before its first step. The argument is that of ``Joint.start``."""
        return Turns(sums, self)


@state
class Turns:
    """Which part of the model each step moves, and on which batch. Every rank holds one, and all decide alike."""

    sums: Tensor  # loss in nats and tokens of this rank's sentences since the last check, [2]
    options: Aggressive | None  # None: the parts move together
    aggressive: bool = field(init=False)  # still
    steps: int = 0  # of the encoder since the last step of the decoder
    previous: float | None = None  # loss in nats per token at the last check; None: there was none
    caught_up: bool = False  # the encoder, so that the decoder is next
    mutual_information: float = 0.0  # at the last validation, in nats

    def __post_init__(self) -> None:
        self.aggressive = self.options is not None

    @property
    def part(self) -> Part:
        """What the next step moves."""
        if not self.aggressive:
            return "all"
        return "decoder" if self.caught_up else "encoder"

    def batch(self, due: int, batches: range, *key: int) -> int:
        """Return which of an epoch's batches the next step takes.

        Args:
            due: the batch of the next step that moves the decoder, which the first encoder step before it takes too.
            batches: of the epoch, or of its current group if the corpus is large. Further encoder steps draw from
                them, with replacement.
            key: seed, stage, epoch.
        """
        if self.part != "encoder" or self.steps == 0:
            return due
        return batches[int(np.random.Generator(np.random.PCG64([*key, due, self.steps])).integers(len(batches)))]

    def decoder_moved(self) -> None:
        """Called after a step that moved the decoder."""
        self.steps, self.previous, self.caught_up = 0, None, False

    def encoder_moved(self, loss: Tensor, tokens: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        """Called after a step that moved the encoder alone. Waits for the device at a check only.

        Args:
            loss, tokens: sums over this rank's sentences, in nats and tokens; 0 if the step was skipped.
            total: sums over ranks, in place: one collective, at a check.
        """
        if self.options is None:
            raise RuntimeError("the encoder moves alone in aggressive training only")
        self.steps += 1
        self.sums[0] += loss
        self.sums[1] += tokens
        if self.steps % self.options.check_every == 0:
            nats, count = total(self.sums).tolist()
            self.sums.zero_()
            if count:  # otherwise every step was skipped
                self.caught_up = self.previous is not None and nats / count > self.previous
                self.previous = nats / count
        if self.steps >= self.options.max_steps:
            self.caught_up = True
        if self.caught_up:
            self.sums.zero_()

    def end_epoch(self, mutual_information: float) -> None:
        """Called after validation, with its mutual information in nats."""
        estimate = max(mutual_information, 0.0)  # which noise may put below the least there can be
        self.aggressive = self.aggressive and estimate >= self.mutual_information
        self.mutual_information = estimate

    def own_state(self) -> dict[str, Tensor]:
        """Return what differs between ranks."""
        return {} if self.options is None else {"turns": self.sums}

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks share and a checkpoint keeps: JSON values."""
        if self.options is None:
            return {}
        return {name: value for name, value in vars(self).items() if name not in ("sums", "options")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a ``state_dict``."""
        if self.options is not None:
            self.aggressive, self.steps, self.previous = state["aggressive"], state["steps"], state["previous"]
            self.caught_up, self.mutual_information = state["caught_up"], state["mutual_information"]
