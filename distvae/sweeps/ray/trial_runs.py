"""Chooses the run that a trial resumes, and makes its config.

A trial has several runs when population-based training has it continue from other trials' checkpoints.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from distvae.config.keys import flatten
from distvae.config.load import load_config
from distvae.config.schema import Config
from distvae.sweeps import lineage
from distvae.sweeps.lineage import Generation
from distvae.sweeps.pretraining import fingerprint, pretraining_folder, pretraining_of
from distvae.sweeps.space import Value
from distvae.sweeps.sweep import Sweep
from distvae.system.files import read_json


def trial_config(sweep: Sweep, values: dict[str, Value], run: Path, shared: frozenset[str]) -> Config:
    """Return the config of a trial's run.

    Args:
        shared: fingerprints of the available pretrainings.
    """
    config = sweep.config_of(values, run)
    first = config
    if len(lineage.ancestry(sweep.folder, run)) > 1:
        # Its weights descend from the pretraining of the first trial, whatever its own values would pretrain.
        first = sweep.config_of(sweep.points()[lineage.first_trial(sweep.folder, run)], run)
    pretraining = pretraining_of(first, sweep.folder)
    if pretraining is None or fingerprint(pretraining) not in shared:
        return config
    return sweep.config_of(values, run, pretraining_folder(sweep.folder, fingerprint(pretraining)))


def choose_run(sweep: Sweep, number: int, values: dict[str, Value], saved: Path | None) -> tuple[Path, Path | None]:
    """Return the folder of the run that a trial resumes, and the checkpoint of another trial that it starts from, if
    any. Remove runs that are newer than the state from which Tune resumes.

    Args:
        saved: the checkpoint folder that Tune passes, of this trial or of the one that it continues from; None if
            there is none.
    """
    first = sweep.folder / "trials" / f"{number:04d}"
    runs = lineage.generations(sweep.folder, number) or [Generation(first)]
    if saved is None:
        here = runs[0]
    else:
        # The sweep may have been moved since Tune stored this path.
        saved = sweep.folder / "tune" / saved.parent.name / saved.name
        if saved.is_dir():
            origin = read_json(saved / "origin.json")
            if origin["trial"] != number:
                return _choose_descendant(sweep, runs, values, saved, origin)
            here = next((g for g in runs if g.run.name == origin["run"]), runs[-1])
        else:  # removed after the state from which Tune resumes was saved, because a later state is torn
            here = ([g for g in runs if has_values(sweep, g, values)] or runs)[-1]
    _remove_later(runs, here)
    if here.parent is None and not has_values(sweep, here, values):  # chosen after the state from which Tune resumes
        shutil.rmtree(here.run)
    return here.run, None


def _choose_descendant(
    sweep: Sweep, runs: list[Generation], values: dict[str, Value], saved: Path, origin: dict[str, Any]
) -> tuple[Path, Path | None]:
    """Choose the run that continues from another trial's checkpoint."""
    from distvae.runs import checkpoints  # late: the sweep's own process needs no torch

    parent = sweep.folder / "trials" / origin["run"]
    known = [g for g in runs if (g.parent, g.step, g.values) == (parent, origin["step"], values)]
    if known:
        here = known[-1]
        _remove_later(runs, here)
    else:
        first = runs[0].run
        here = Generation(first.with_name(f"{first.name}.{len(runs)}"), parent, origin["step"], values)
    if checkpoints.list_checkpoints(here.run):
        return here.run, None
    shutil.rmtree(here.run, ignore_errors=True)  # new, or killed before its first checkpoint
    lineage.save_lineage(here)
    return here.run, saved / "checkpoint"


def _remove_later(runs: list[Generation], here: Generation) -> None:
    for later in runs[runs.index(here) + 1 :]:
        shutil.rmtree(later.run)


def has_values(sweep: Sweep, generation: Generation, values: dict[str, Value]) -> bool:
    """Return whether a run has these values, or has not begun."""
    if generation.parent is not None:
        return generation.values == values
    if not (generation.run / "config.yaml").exists():
        return True
    there = dict(flatten(load_config(generation.run / "config.yaml", stored=True)))
    here = dict(flatten(sweep.config_of(values, generation.run)))
    # A key with a condition may be an option that this trial does not read.
    return all(there.get(key) == here.get(key) for key in sweep.config.space)
