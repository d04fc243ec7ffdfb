"""Load a config: the defaults < the files that ``base`` names < the YAML file < ``key=value`` on the command line.

The ``config.yaml`` of a run is the result: it has every setting and no ``base``."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from distvae.config.kl import KEYS, KLConfig
from distvae.config.schema import Config, Precision
from distvae.config.yaml import ConfigError, dump_tree, read_tree, read_value
from distvae.system.settings import at_home

# The sections of format 1, which every stored config has: one that lacks some was cut off. Sections added later take
# their defaults in older files.
_SECTIONS = (
    "data", "model", "optimizer", "pretrain", "train", "kl", "plateau", "communication", "checkpoint", "evaluation",
    "speed",
)  # fmt: skip


def load_config(path: str | Path, overrides: Sequence[str] = (), whole: bool = False, stored: bool = False) -> Config:
    """Read a YAML file over its bases, apply ``key=value`` overrides, validate.

    Args:
        path: the YAML file.
        overrides: as ``kl.target_rate=6``; the value is YAML.
        whole: the file must name every section of format 1, as each file that a run wrote does.
        stored: a run wrote the file, so options that nothing reads are accepted. ``whole`` implies it.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), a value is out of range.
    """
    tree = read_tree(path) if whole else read_merged(path)
    missing = [name for name in _SECTIONS if name not in tree]
    if whole and missing:
        raise ConfigError(f"{path}: is not the whole config of a run: it lacks {', '.join(missing)}")
    for override in overrides:
        apply_override(tree, override)
    if tree.get("run") is None:
        tree["run"] = run_folder(path)
    return parse_config(tree, str(path), stored or whole)


def read_merged(path: str | Path) -> dict[str, Any]:
    """Read a training config over its bases: the file that ``base`` names, relative to this one, and so on.

    A value replaces the base's, key by key in sections. ``run`` is not inherited: two runs cannot share a folder.

    Raises:
        ConfigError: a file cannot be read or is based on itself.
    """
    path, named = Path(path), ""
    files: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if any(path.exists() and path.samefile(other) for other, _ in files):
            raise ConfigError(f"{named}{path} is based on itself; a base must not lead back to itself")
        try:
            tree = read_tree(path)
        except ConfigError as error:
            raise ConfigError(f"{named}{error}") from None
        base = tree.pop("base", None)
        files.append((path, tree))
        if base is None:
            break
        if not isinstance(base, str) or not base or "\0" in base:
            raise ConfigError(f"{path}: base = {base!r}: should be the path of a config, relative to this file")
        named = f"{path}: base: "
        path = path.parent / os.path.expanduser(base)
    _, merged = files.pop()
    while files:
        merged.pop("run", None)
        merged = _merge(merged, files.pop()[1])
    return merged


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def parse_config(tree: dict[str, Any], source: str, stored: bool = False) -> Config:
    """Validate a tree of plain values. ``source`` says in errors where it came from; ``stored`` as in ``load_config``.

    Raises:
        ConfigError: a key is unknown or a value out of range.
    """
    try:
        # By way of JSON, whose strict rules take a mapping for a data class and a list for a tuple, but no text for a
        # number and no `true` for 1.
        config = TypeAdapter(Config).validate_json(json.dumps(tree), context={"stored": stored})
    except ValidationError as error:
        wrong = {problem["loc"][:1] if problem["type"] != "json_invalid" else ("run",) for problem in error.errors()}
        run = None if ("run",) in wrong else tree.get("run")
        raise ConfigError(f"{source}: {explain(error)}", run and at_home(run)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: is not made of plain keys and values: {error}") from None
    return config


def with_precision(config: Config, precision: Precision) -> Config:
    """The config with what the launcher may have set, for a run's folder says what it used.

    Args:
        precision: of the training.
    """
    return replace(
        config,
        optimizer=replace(config.optimizer, mixed_precision=precision),
        evaluation=replace(config.evaluation, mixed_precision=config.evaluation.mixed_precision or precision),
    )


def dump_config(config: Config) -> str:
    """The whole config as YAML, which ``load_config`` reads back."""
    return dump_tree(TypeAdapter(Config).dump_python(config, mode="json"))


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value."""
    items = config.flat() if isinstance(config, KLConfig) else vars(config) if is_dataclass(config) else config
    for key, value in items.items():
        if is_dataclass(value) or isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """The keys of a data class, dotted, and its sections."""
    for key, hint in get_type_hints(kind).items():
        yield f"{prefix}{key}"
        if hint is KLConfig:
            yield from (f"{prefix}{key}.{name}" for name in KEYS)
        elif isinstance(hint, type) and is_dataclass(hint):
            yield from known_keys(hint, f"{prefix}{key}.")


def explain(error: ValidationError, kind: type = Config) -> str:
    """Every problem that was found with a data class, in a line."""
    return "; ".join(_explain(problem, kind) for problem in error.errors())


def run_folder(path: str | Path) -> str:
    """Where a config's run goes that does not say it: runs/ and the file's path below configs/."""
    return str(Path("runs", *_below_configs(Path(path))))


def _below_configs(path: Path) -> tuple[str, ...]:
    parts = path.with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("configs") :] if "configs" in parts else ()
    return below or parts[-1:]


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put a ``key=value`` into a tree of plain values; the value is YAML without comments.

    Raises:
        ConfigError: it is not of this form.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, such as kl.target_rate=6")
    try:
        set_key(tree, key, read_value(value))
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{override!r}: the value is not YAML; quote it") from None


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put a value into a tree under its dotted key.

    Raises:
        ConfigError: a part of the key is a single value.
    """
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"'{key}={value}': {parent} is a single value and has no key {last}")
    tree[last] = value


def _explain(problem: ErrorDetails, kind: type) -> str:
    loc = problem["loc"]
    if len(loc) > 3 and loc[0] == "kl":  # kl, policy, the policy's name, its option
        loc = ("kl", *loc[3:])
    key = ".".join(str(part) for part in loc)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(key, known_keys(kind), n=1, cutoff=0.5)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
    if problem["type"] == "json_invalid":  # lone surrogates, nesting
        return f"is not made of plain keys and values: {problem['ctx']['error']}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    given = problem["input"]
    if problem["type"] == "union_tag_invalid":
        given, names = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].split(", ")
        message = f"input should be {', '.join(names[:-1])} or {names[-1]}"
    if problem["type"] in ("tuple_type", "list_type") and isinstance(given, str | int | float):
        message += f"; a list: write '{key}=[{given}]'"
    return f"{key} = {given!r}: {message[0].lower() + message[1:]}"
