"""Load a config: the defaults < the files that ``base`` names < the YAML file < ``key=value`` on the command line.

A run writes the result to its ``config.yaml``, which has every setting that the run reads, and no ``base``.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from distvae.config.keys import either, format_readers, known_keys, readers, sections
from distvae.config.schema import CAPTIONS, Config, EvaluationConfig, Precision
from distvae.config.sections import UNREAD, choices_of
from distvae.config.yaml import ConfigError, dump_tree, read_tree, read_value
from distvae.system.settings import at_home

# The sections of format 1. A stored config that lacks one was truncated. Later sections take their defaults in older
# files.
_SECTIONS = (
    "data", "model", "optimizer", "pretrain", "train", "kl", "plateau", "communication", "checkpoint", "evaluation",
    "speed",
)  # fmt: skip


def load_config(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = (), whole: bool = False, stored: bool = False
) -> Config:
    """Read a YAML file over its bases, apply ``key=value`` overrides, validate.

    Args:
        path: the YAML file.
        overrides: as ``kl.target_rate=6``, whose value is YAML, or values by key.
        whole: require every section of format 1, which each file that a run wrote has. Implies ``stored``.
        stored: accept options that nothing reads, because a run of an older version may have written the file.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the error names the nearest), a value is out of range.
    """
    tree = read_tree(path) if whole else read_merged(path)
    missing = [name for name in _SECTIONS if name not in tree]
    if whole and missing:
        raise ConfigError(f"{path}: is not the complete config of a run: it lacks {', '.join(missing)}")
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            set_key(tree, key, value)
    else:
        for override in overrides:
            apply_override(tree, override)
    if stored or whole:
        migrate(tree)
    if tree.get("run") is None:
        tree["run"] = run_folder(path)
    return parse_config(tree, str(path), stored or whole)


def migrate(tree: dict[str, Any]) -> None:
    """Add to a config that a run or sweep of an older version wrote what it did without saying so."""
    data = tree.get("data")
    if isinstance(data, dict) and data.get("path", CAPTIONS) != CAPTIONS:
        data.setdefault("tokenizer", "treebank")


def read_merged(path: str | Path) -> dict[str, Any]:
    """Read a training config over its bases: the file that ``base`` names, relative to this one, and so on.

    A value replaces the base's, and sections are merged key by key. ``run`` is not inherited, because two runs cannot
    share a folder.

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
    """Validate a tree of plain values.

    Args:
        source: where it came from, for errors.
        stored: as in ``load_config``.

    Raises:
        ConfigError: a key is unknown or a value is out of range.
    """
    try:
        # pydantic's strict rules for JSON take a mapping as a data class and a list as a tuple, but no text as a number
        # and no `true` as 1.
        config = TypeAdapter(Config).validate_json(json.dumps(tree), context={"stored": stored})
    except ValidationError as error:
        wrong = {problem["loc"][:1] if problem["type"] != "json_invalid" else ("run",) for problem in error.errors()}
        run = None if ("run",) in wrong else tree.get("run")
        raise ConfigError(f"{source}: {explain(error)}", run and at_home(run)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: is not made of plain keys and values: {error}") from None
    return config


def with_values(settings: EvaluationConfig, **values: Any) -> EvaluationConfig:
    """Return evaluation settings with other values. None: as it was.

    Raises:
        ConfigError: a value is out of range.
    """
    try:
        return replace(settings, **{key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(explain(error, EvaluationConfig)) from None


def with_overrides(config: Config, overrides: Sequence[str], source: str) -> Config:
    """Return the config of a run with ``key=value`` overrides.

    Args:
        source: where it came from, for errors.

    Raises:
        ConfigError: a key is unknown or a value is out of range.
    """
    tree = TypeAdapter(Config).dump_python(config, mode="json")
    for override in overrides:
        apply_override(tree, override)
    return parse_config(tree, source, stored=True)


def with_precision(config: Config, precision: Precision) -> Config:
    """Return the config with the precision that the run uses, which the launcher may have set.

    Args:
        precision: of training.
    """
    return replace(
        config,
        optimizer=replace(config.optimizer, mixed_precision=precision),
        evaluation=replace(config.evaluation, mixed_precision=config.evaluation.mixed_precision or precision),
    )


def dump_config(config: Config) -> str:
    """Return a config as YAML that ``load_config`` reads back."""
    return dump_tree(TypeAdapter(Config).dump_python(config, mode="json"))


def explain(error: ValidationError, kind: type = Config) -> str:
    """Return all problems of a validation in one line.

    Args:
        kind: the data class that was validated.
    """
    return "; ".join(_explain(problem, kind) for problem in error.errors())


def run_folder(path: str | Path) -> str:
    """Return the default run folder of a config file: runs/ and the file's path below configs/."""
    return str(Path("runs", *_below_configs(Path(path))))


def _below_configs(path: Path) -> tuple[str, ...]:
    parts = path.with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("configs") :] if "configs" in parts else ()
    return below or parts[-1:]


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set a ``key=value`` in a tree of plain values. The value is YAML without comments.

    Raises:
        ConfigError: the override does not have this form.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, such as kl.target_rate=6")
    try:
        set_key(tree, key, read_value(value))
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{override!r}: the value is not YAML; quote it twice if it is text: '{key}=\"…\"'") from None


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in a tree of plain values.

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
    key = _key_of(problem["loc"], kind)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(key, known_keys(kind), n=1, cutoff=0.5)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
    if problem["type"] == "json_invalid":  # lone surrogates, nesting
        return f"is not made of plain keys and values: {problem['ctx']['error']}"
    given, message = problem["input"], problem["msg"].removeprefix("Value error, ")
    if problem["type"] == UNREAD:
        return _explain_unread(key, problem["ctx"], kind)
    if problem["type"] == "value_error":
        return message
    if problem["type"] == "union_tag_invalid":
        given, names = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].split(", ")
        message = f"input should be {either(names)}"
    if problem["type"] in ("tuple_type", "list_type") and isinstance(given, str | int | float):
        message += f"; a list: write '{key}=[{given}]'"
    if problem["type"] == "string_type":
        message += f"; quote it twice if it is text: '{key}=\"…\"'"
    return f"{key} = {given!r}: {message[0].lower() + message[1:]}"


def _explain_unread(section: str, context: dict[str, Any], kind: type) -> str:
    key, default = f"{section}.{context['option']}", context["default"]
    wanted = readers(kind, key)
    chosen = " and ".join(f"{choice} is {context['chosen'][choice.rpartition('.')[2]]}" for choice in wanted)
    return (
        f"{key} = {context['value']} belongs to {format_readers(wanted)}, and {chosen}: leave it out, or set"
        f" {key}={'null' if default is None else default}, its default"
    )


def _key_of(location: tuple[int | str, ...], kind: type) -> str:
    """Return the dotted key of a pydantic location, in which an option comes after the choice and the component."""
    parts, rest = [], list(location)
    section = sections(kind).get(str(rest[0])) if rest else None
    if section is not None and len(rest) > 3 and rest[1] in {choice.key for choice in choices_of(section)}:
        parts, rest = rest[:1], rest[3:]
    return ".".join(str(part) for part in [*parts, *rest])
