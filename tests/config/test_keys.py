from dataclasses import dataclass
from typing import Annotated

from distvae.config.keys import (
    either,
    fields_with,
    flatten,
    format_readers,
    keys_with,
    known_keys,
    option_defaults,
    readers,
    sections,
    unread_options,
)
from distvae.config.kl import KLConfig
from distvae.config.schema import Config
from distvae.system.roles import Role


def test_flatten_gives_dotted_keys():
    assert list(flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": None})) == [
        ("a", 1), ("b.c", 2), ("b.d.e", 3), ("f", None),
    ]  # fmt: skip
    pairs = dict(flatten(Config()))
    assert (pairs["kl.target_rate"], pairs["seed"], pairs["data.columns"]) == (4.0, 0, None)
    assert "kl.weight" not in pairs  # no chosen component reads it


def test_known_keys_are_sections_settings_and_all_options():
    found = list(known_keys(Config))
    assert len(found) == len(set(found))
    assert {key for key, _ in flatten(Config())} < set(found)
    assert {"seed", "kl", "kl.policy", "kl.free_bits", "kl.weight", "train", "train.max_epochs"} < set(found)


def test_options_have_defaults_and_readers():
    assert sections(Config)["kl"] is KLConfig
    assert option_defaults(Config)["kl.weight"] == 1.0
    assert "kl.policy" not in option_defaults(Config)
    assert readers(Config, "kl.ramp") == {"kl.policy": ("cyclical",)}
    assert "soft_free_bits" in readers(Config, "kl.target_rate")["kl.policy"]
    assert "batch" in readers(Config, "kl.target_rate")["kl.free_bits"]
    assert readers(Config, "seed") == readers(Config, "data.seed") == {}


def test_unread_options_have_their_readers():
    found = unread_options(Config(kl=KLConfig(policy="linear")))
    assert found["kl.threshold"] == "kl.policy=soft_free_bits or from_above"
    assert "kl.weight" not in found
    assert found.keys() < option_defaults(Config).keys()


def test_alternatives_are_listed():
    assert [either(names) for names in ("a", "ab", "abc")] == ["a", "a or b", "a, b or c"]
    assert format_readers({"x": ("a",), "y": ("b", "c")}) == "x=a, or y=b or c"


@dataclass(frozen=True)
class Inner:
    plain: int = 0
    place: Annotated[int, Role.PLACE] = 0


@dataclass(frozen=True)
class Outer:
    inner: Inner
    fast: Annotated[Inner, Role.EXTENT]
    path: Annotated[int | None, Role.SOURCE, Role.PER_PROCESS]
    result: int = 0


def test_roles_are_those_of_fields_and_their_sections():
    assert keys_with(Outer, Role.PLACE) == {"inner.place", "fast.place"}
    assert keys_with(Outer, Role.EXTENT) == {"fast.plain", "fast.place"}
    assert keys_with(Outer, Role.SOURCE) == keys_with(Outer, Role.PER_PROCESS) == {"path"}
    assert keys_with(Outer, *Role).isdisjoint({"result", "inner.plain"})
    assert fields_with(Outer, Role.EXTENT, Role.SOURCE) == {"fast", "path"}
    assert fields_with(Outer, Role.PLACE) == set()
