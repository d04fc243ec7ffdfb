"""Pretraining runs that the trials of a sweep, or the rows of a table, share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distvae.config.keys import flatten, keys_with
from distvae.config.kl import KLConfig
from distvae.config.schema import Config, InferenceConfig, StageConfig
from distvae.system.errors import UserError
from distvae.system.roles import Role

# Keys that pretraining does not depend on.
_IGNORED = keys_with(Config, Role.PLACE, Role.AFTER_PRETRAINING)


def pretraining_of(config: Config, folder: Path) -> Config | None:
    """Return the pretraining stage of a trial as a run of its own in a sweep folder, or None if it has none."""
    if config.pretrained is not None or config.pretrain.max_epochs == 0:
        return None
    alone = replace(
        config,
        train=StageConfig(0),
        kl=KLConfig(),
        inference=InferenceConfig(),
        evaluation=replace(config.evaluation, validation_samples=0),
    )
    return replace(alone, run=str(pretraining_folder(folder, fingerprint(alone))))


def pretraining_folder(folder: Path, fingerprint: str) -> Path:
    """Return the folder of a pretraining that the runs in a folder share."""
    return folder / "pretrained" / fingerprint


def fingerprint(config: Config) -> str:
    """Return a hash of all settings that pretraining depends on: configs with equal fingerprints pretrain alike."""
    read = {key: value for key, value in flatten(config) if matters_to_pretraining(key)}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:12]


def matters_to_pretraining(key: str) -> bool:
    """Return whether the result of pretraining depends on a config key."""
    return key not in _IGNORED


def source_of(file: Path, rows: Mapping[Path, Config]) -> Path | None:
    """Return the row whose pretraining a row uses: the one that pretrains alike and does nothing else. None if the row
    has no pretraining, or nothing else.

    Raises:
        UserError: there is no such row, or several.
    """
    config = rows[file]
    if not (config.train.max_epochs and config.pretrain.max_epochs):
        return None
    sources = [other for other, their in rows.items() if not their.train.max_epochs]
    found = [other for other in sources if fingerprint(rows[other]) == fingerprint(config)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(other.name for other in found)
        raise UserError(f"{file}: needs the pretraining of one row, but {names} all pretrain alike; keep one")
    ours = dict(flatten(config))
    why = []
    for other in sources:
        theirs = dict(flatten(rows[other]))
        keys = [key for key in ours | theirs if matters_to_pretraining(key) and ours.get(key) != theirs.get(key)]
        why.append(f"{other.name} has {', '.join(f'{key}={theirs.get(key)}, not {ours.get(key)}' for key in keys)}")
    raise UserError(
        f"{file}: needs the pretraining of a row that only pretrains (train.max_epochs: 0), with the same settings:"
        f" {'; '.join(why) or 'there is none'}"
    )
