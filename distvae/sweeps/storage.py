"""Read sweep files, and read and write the specification in a sweep folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distvae.config.keys import fields_with, flatten
from distvae.config.load import apply_override, dump_config, explain, migrate, parse_config, read_merged, run_folder
from distvae.config.schema import Config
from distvae.config.yaml import ConfigError, dump_tree, read_tree
from distvae.runs.attempts import read_attempts
from distvae.sweeps.checks import check_read, check_sweep
from distvae.sweeps.space import Dimension
from distvae.sweeps.specification import SweepConfig
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError
from distvae.system.roles import Role


def load_sweep(path: str | Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """Read a sweep file and the training config that it names, and check them.

    Args:
        path: the sweep file.
        overrides: ``key=value`` settings that replace those of the file.

    Raises:
        UserError: a file cannot be read, or the sweep does not make sense.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    if tree.get("run") is None:
        tree["run"] = run_folder(path)
    config = _parse(tree, str(path))
    sweep = Sweep(config, read_merged(config.base))
    check_sweep(sweep)
    check_read(sweep)
    return sweep


def open_sweep(folder: Path) -> Sweep:
    """Read the sweep in a folder, which may have moved.

    Raises:
        UserError: the folder is not a sweep folder, or is damaged.
    """
    path = folder / "sweep.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: is not a sweep folder: it has no sweep.yaml")
    if not is_sweeps(folder):
        raise UserError(f"{folder}: is not a sweep folder: no sweep wrote its sweep.yaml")
    config, base = replace(_parse(read_tree(path), str(path)), run=str(folder)), folder / "base.yaml"
    tree = read_tree(base)
    migrate(tree)
    parse_config(copy.deepcopy(tree), str(base), stored=True)  # the errors of trials name the original file
    sweep = Sweep(config, tree)
    check_sweep(sweep)
    return sweep


def is_sweeps(folder: Path) -> bool:
    """Return whether a sweep wrote what is in a folder. A run folder has attempts too, but also a config.yaml."""
    return bool(read_attempts(folder)) and not (folder / "config.yaml").exists()


def dump_sweep(sweep: Sweep) -> dict[str, str]:
    """Return the files of a sweep folder that specify the sweep, by name."""
    tree = TypeAdapter(SweepConfig).dump_python(sweep.config, mode="json")
    tree["space"] = {
        key: {name: value for name, value in dimension.items() if value is not None}
        for key, dimension in tree["space"].items()
    }
    return {"sweep.yaml": dump_tree(tree), "base.yaml": dump_config(_whole_base(sweep))}


def _whole_base(sweep: Sweep) -> Config:
    return parse_config(copy.deepcopy(sweep.base) | {"run": None}, sweep.config.base, stored=True)


def differences(there: Sweep, here: Sweep) -> list[str]:
    """Return the settings that keep one sweep from resuming another, with both values."""
    may_change = fields_with(SweepConfig, Role.PLACE, Role.SOURCE, Role.EXTENT)

    def settings(sweep: Sweep) -> dict[str, Any]:
        tree = TypeAdapter(SweepConfig).dump_python(sweep.config, mode="json")
        base = {f"base: {key}": value for key, value in flatten(_whole_base(sweep))}
        return {key: value for key, value in tree.items() if key not in may_change} | base

    old, new = settings(there), settings(here)
    return [f"{key} ({old[key]} there, {new[key]} here)" for key in new if old[key] != new[key]]


def _parse(tree: dict[str, Any], source: str) -> SweepConfig:
    kinds = {field.name for field in fields(Dimension)}
    for section, ends in (("set", lambda value: False), ("space", lambda value: bool(kinds & value.keys()))):
        if isinstance(tree.get(section), dict):
            tree[section] = dict(_dotted(tree[section], ends))
    strays = {field.name for field in fields(Config)} - {field.name for field in fields(SweepConfig)}
    for name, value in tree.items():
        if name in strays:
            key = next((key for key, _ in flatten({name: value})), name)
            raise ConfigError(f"{source}: {key} is a key of the training config: write set.{key}", tree.get("run"))
    try:
        return TypeAdapter(SweepConfig).validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, SweepConfig)}", tree.get("run")) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: is not made of plain keys and values: {error}") from None


def _dotted(
    tree: dict[str, Any], ends: Callable[[dict[str, Any]], bool], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values from keys that are dotted or nested sections.

    Args:
        ends: whether a section is itself a value.
    """
    for key, value in tree.items():
        if isinstance(value, dict) and value and not ends(value):
            yield from _dotted(value, ends, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
