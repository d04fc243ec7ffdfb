"""Pretraining runs that the trials of a sweep share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from distvae.config.keys import flatten, keys_with
from distvae.config.kl import KLConfig
from distvae.config.schema import Config, StageConfig
from distvae.system.roles import Role

# Keys that pretraining does not depend on.
_IGNORED = keys_with(Config, Role.PLACE, Role.AFTER_PRETRAINING)


def pretraining_of(config: Config, folder: Path) -> Config | None:
    """Return the pretraining stage of a trial as a run of its own in a sweep folder, or None if it has none."""
    if config.pretrained is not None or config.pretrain.max_epochs == 0:
        return None
    alone = replace(
        config, train=StageConfig(0), kl=KLConfig(), evaluation=replace(config.evaluation, validation_samples=0)
    )
    return replace(alone, run=str(folder / "pretrained" / fingerprint(alone)))


def fingerprint(config: Config) -> str:
    """Return a hash of all settings that pretraining depends on: configs with equal fingerprints pretrain alike."""
    read = {key: value for key, value in flatten(config) if matters_to_pretraining(key)}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:12]


def matters_to_pretraining(key: str) -> bool:
    """Return whether the result of pretraining depends on a config key."""
    return key not in _IGNORED
