"""What processes send each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from distvae.config.sections import Section
from distvae.system.roles import Role
from distvae.system.settings import LARGEST_INT, RULES, Positive


@dataclass(frozen=True, config=RULES)
class Uncompressed:
    """Send gradients in float32."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, config=RULES)
class BF16:
    """Send gradients rounded to bf16."""

    name: Literal["bf16"] = "bf16"


@dataclass(frozen=True, config=RULES)
class PowerSGD:
    """Send low-rank factors of gradients (Vogels et al., 2019)."""

    name: Literal["powersgd"] = "powersgd"
    # Rank of the factors: a higher one is more exact, and more to send.
    powersgd_rank: Positive = 4
    # Steps that send whole gradients before PowerSGD begins.
    powersgd_start: Annotated[int, Field(ge=2, le=LARGEST_INT)] = 1000


@dataclass(frozen=True, config=RULES)
class CommunicationConfig(Section):
    """What processes send each other under data parallelism (DDP). ZeRO and FSDP have their own ways."""

    # What a step sends of its gradients.
    compression: Annotated[Uncompressed | BF16 | PowerSGD, Field(discriminator="name")] = Uncompressed()
    # Local SGD (Stich, 2019): each process steps by its own share of each batch and clips on its own. Every so many
    # steps all processes take the mean of their weights. Null: gradients are reduced in every step.
    local_sgd_steps: Positive | None = None
    # Under any engine: minutes without a heartbeat from a process after which the run stops and names the process.
    # Processes wait twice as long for each other when they start and in a collective.
    timeout_minutes: Annotated[float, Field(gt=0, le=1e6), Role.PLACE] = 15.0

    @model_validator(mode="after")
    def _local_sgd_sends_no_gradients(self) -> CommunicationConfig:
        if not isinstance(self.compression, Uncompressed) and self.local_sgd_steps is not None:
            raise ValueError(
                f"communication.compression={self.compression.name} has nothing to compress under local_sgd_steps,"
                " which sends weights and no gradients"
            )
        return self
