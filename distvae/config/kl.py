"""The ``kl`` section: a γ policy and a free-bits form, whose options are flat keys of one section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ValidationInfo, model_serializer, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from distvae.methods import FREE_BITS, POLICIES, FreeBits, Policy
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.soft_free_bits import SoftFreeBits
from distvae.system.settings import RULES

# The components of the section by the key that chooses them.
_SLOTS: dict[str, Mapping[str, type]] = {"policy": POLICIES, "free_bits": FREE_BITS}


def options_of(component: type | object) -> dict[str, Any]:
    """Return the options that a component declares, with their defaults."""
    return {field.name: field.default for field in fields(component) if field.name != "name"}  # type: ignore[arg-type]


# Every option of the section, with its default.
OPTIONS: dict[str, Any] = {
    name: default for slot in _SLOTS.values() for kind in slot.values() for name, default in options_of(kind).items()
}

# Every key of the section.
KEYS = (*_SLOTS, *OPTIONS)


@dataclass(frozen=True, config=RULES)
class KLConfig:
    """What sets γ, the weight of the KL term, and what replaces the KL term (paper, section 6.1, Algorithm 1)."""

    policy: Policy = SoftFreeBits()
    free_bits: FreeBits = NoFreeBits()

    @model_validator(mode="before")
    @classmethod
    def _give_each_component_its_options(cls, values: Any, info: ValidationInfo) -> Any:
        if isinstance(values, ArgsKwargs) and values.args:
            raise ValueError("the options of kl are given by name")
        given = dict(values.kwargs or {}) if isinstance(values, ArgsKwargs) else values
        if not isinstance(given, dict):
            return values
        found: dict[str, Any] = {
            "policy": given.get("policy", SoftFreeBits.name),
            "free_bits": given.get("free_bits", NoFreeBits.name),
        }
        rest = {key: value for key, value in given.items() if key not in _SLOTS}
        read: set[str] = set()
        for slot, kinds in _SLOTS.items():
            name = found[slot]
            if isinstance(name, str) and name in kinds:
                own = {key: rest[key] for key in options_of(kinds[name]).keys() & rest.keys()}
                found[slot] = {"name": name, **own} if info.mode == "json" else kinds[name](**own)
                read |= own.keys()
            elif not hasattr(name, "name"):
                found[slot] = {"name": name}  # is refused, with the names that there are
        for key, value in rest.items():
            if key not in OPTIONS:
                found[key] = value  # is refused by name
            elif key not in read and not (info.context or {}).get("stored") and value != OPTIONS[key]:
                raise ValueError(_unread(key, value, found["policy"]))
        return found

    @model_serializer
    def flat(self) -> dict[str, Any]:
        """Return the section as its flat keys."""
        found: dict[str, Any] = {"policy": self.policy.name}
        for component in (self.policy, self.free_bits):
            found |= {name: getattr(component, name) for name in options_of(component)}
        return found | {"free_bits": self.free_bits.name}

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """Options that neither component declares, and the policies that do."""
        read = self.flat()
        return {name: _readers("policy", name) for name in OPTIONS if name not in read}

    @property
    def rate(self) -> float | None:
        """λ in nats per sentence, where the policy or the free bits have one."""
        return self.free_bits.rate if self.policy.rate is None else self.policy.rate


def _readers(slot: str, option: str) -> tuple[str, ...]:
    return tuple(name for name, kind in _SLOTS[slot].items() if option in options_of(kind))


def either(policies: tuple[str, ...]) -> str:
    """Return policies as a message names them."""
    if len(policies) == 1:
        return f"policy {policies[0]}"
    return f"policies {', '.join(policies[:-1])} and {policies[-1]}"


def _unread(option: str, value: Any, policy: Any) -> str:
    name = policy["name"] if isinstance(policy, dict) else policy.name
    default = OPTIONS[option]
    return (
        f"kl.{option} = {value} belongs to {either(_readers('policy', option))}"
        f"{' or to free bits' if _readers('free_bits', option) else ''}, and kl.policy is {name}: leave it out, or set"
        f" kl.{option}={'null' if default is None else default}, its default"
    )
