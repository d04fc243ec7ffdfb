"""The processes that Ray starts for trials and pretrainings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import ray.train
from ray import tune

from distvae.sweeps.ray.placement import gpus_of
from distvae.sweeps.sweep import Sweep

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

# The tasks of a Slurm or MPI job are Ray's nodes, not the processes of a run.
_FOREIGN_VARIABLES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def enter_worker(where: str) -> None:
    """Prepare a process that Ray started for a run.

    Args:
        where: the folder to which relative paths in configs refer.
    """
    os.chdir(where)
    for name in _FOREIGN_VARIABLES:
        os.environ.pop(name, None)


def torch_trainer(
    sweep: Sweep, work: Callable[[dict[str, Any]], None], name: str, callbacks: list[ray.train.UserCallback]
) -> TorchTrainer:
    """Return a trainer that runs ``work`` in each process of a trial or pretraining."""
    from ray.train.torch import TorchConfig, TorchTrainer  # late: the sweep's own process needs no torch

    settings = sweep.config.trial
    gpus = gpus_of(sweep)
    return TorchTrainer(
        work,
        train_loop_config={},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": settings.cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(sweep.folder / "ray"),
            callbacks=cast("list[tune.Callback]", callbacks),  # Ray's declared type is that of its former version
        ),
    )
