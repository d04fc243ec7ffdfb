"""What a launcher asks for, as a process finds it in its environment."""

import ctypes
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from distvae.config.communication import CommunicationConfig
from distvae.config.schema import Config, OptimizerConfig
from distvae.distributed.runtime import Runtime
from distvae.system.errors import PeerError, UserError
from tests.conftest import launch, needs

DEFAULT = Config()


@pytest.fixture
def deepspeed(monkeypatch, tmp_path):
    """Ask for DeepSpeed with a config, as `accelerate launch --use_deepspeed --deepspeed_config_file` does."""

    def ask(**settings):
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | settings))
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))

    return ask


@pytest.fixture
def mallopt(monkeypatch):
    """What glibc is told of its memory, which it is not."""
    told = []
    libc = SimpleNamespace(mallopt=lambda parameter, value: told.append((parameter, value)))
    monkeypatch.setattr("distvae.distributed.device.ctypes", SimpleNamespace(CDLL=lambda name: libc))
    return told


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CPU's business")
def test_what_is_too_small_for_full_precision_is_zero_while_a_runtime_is_open():
    small = torch.tensor(1e-30)
    runtime = Runtime()
    assert small * 1e-10 == 0
    runtime.close()
    assert small * 1e-10 > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "section optimizer: leave it out; the run's optimizer.name rules"),
        ({"scheduler": {"type": "WarmupLR"}}, "section scheduler: leave it out; the run's plateau rules"),
        ({"fp16": {"enabled": True}}, "section fp16: leave it out; the run's optimizer.mixed_precision rules"),
        ({"bf16": {"enabled": True}}, "section bf16"),
        ({"gradient_clipping": 1.0}, "gradient_clipping: leave it out, optimizer.clip_norm rules"),
        ({"zero_optimization": {"stage": 0}}, "zero_stage is 0: use 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, r"offloads \(optimizer\)"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, r"offloads \(param\)"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:12],
)
def test_a_deepspeed_config_that_says_what_the_run_says(deepspeed, settings, message):
    deepspeed(**settings)
    with pytest.raises(UserError, match=message):
        Runtime()


def test_deepspeed_that_is_not_installed(deepspeed, monkeypatch):
    deepspeed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"deepspeed is missing: pip install -e '\.\[deepspeed\]'"):
        Runtime()


@pytest.mark.parametrize(
    "environment", [{"FSDP_VERSION": "1"}, {}, {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}]
)
def test_an_fsdp_that_is_not_carried(monkeypatch, environment):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="needs fsdp_version: 2, and no fsdp_offload_params"):
        Runtime()


@pytest.mark.parametrize("engine", ["DeepSpeed", "FSDP"])
def test_ddp_options_under_another_engine(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    for options in ({"compression": "bf16"}, {"local_sgd_steps": 4}):
        with pytest.raises(UserError, match=f"belong to plain data parallelism, not to {engine}"):
            Runtime(communication=CommunicationConfig(**options))


def test_a_precision_that_is_not_carried(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match="mixed_precision is fp16: use no or bf16"):
        Runtime()


def test_the_configs_precision_wins_over_the_launchers(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    runtime = Runtime(dataclasses.replace(DEFAULT.optimizer, mixed_precision="no"))
    assert runtime.mixed_precision == "no"
    runtime.close()
    runtime = Runtime()
    assert runtime.mixed_precision == "bf16"
    runtime.close()


def test_a_process_takes_the_gpu_of_its_local_rank(monkeypatch, mallopt):
    """The fourth process of the second machine of two with four GPUs each, as far as it can be seen without one."""
    place = {"RANK": 7, "LOCAL_RANK": 3, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    asked, chosen = {}, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "init_process_group", lambda **options: asked.update(options))
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 8)
    monkeypatch.setattr(dist, "get_rank", lambda *_: 7)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: "store")
    beats = []
    monkeypatch.setattr(
        "distvae.distributed.runtime.Heartbeat",
        lambda *given: beats.append(given) or SimpleNamespace(close=beats.clear),
    )
    runtime = Runtime(communication=CommunicationConfig(timeout_minutes=20))
    assert asked["backend"] == "nccl"
    assert asked["timeout"].total_seconds() == 2400
    assert beats == [("store", 7, 8, 1200)]
    assert runtime.device == torch.device("cuda", 3)
    assert chosen
    assert all(torch.device(device) == runtime.device for device in chosen)
    assert (runtime.rank, runtime.world_size, runtime.engine) == (7, 8, "DDP")
    assert mallopt == []
    runtime.close()
    assert beats == []


def test_deepspeed_is_told_what_the_config_says(deepspeed):
    deepspeed()
    optimizer = OptimizerConfig(clip_norm=3.0, accumulation_steps=4, mixed_precision="bf16")
    from distvae.distributed.runtime import _deepspeed

    told = _deepspeed(optimizer, "bf16").deepspeed_config
    assert told["gradient_clipping"] == 3.0
    assert told["gradient_accumulation_steps"] == 4
    assert told["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert "bf16" not in told
    assert _deepspeed(dataclasses.replace(optimizer, clip_norm=None), "no").deepspeed_config["gradient_clipping"] == 0


def test_what_an_engine_cannot_do_is_one_line_and_leaves_nothing(tiny, tmp_path):
    run = tmp_path / "run"
    done = launch(str(tiny), f"run={run}", "communication.compression=bf16", processes=2, engine="zero2")
    assert done.returncode != 0
    assert done.stderr.count("distvae: ") == 1
    assert "communication.compression and communication.local_sgd_steps belong to plain data parallelism" in done.stderr
    assert not run.exists()


# -- Threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "processes", "threads"), [(None, "1", 64), ("4", "1", 4), ("4", "3", 1), ("128", "2", 32)]
)
def test_threads_are_the_cores_that_a_job_has_here_also_where_slurm_confines_none(
    monkeypatch, given, processes, threads
):
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if given is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", given)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    Runtime().close()
    assert asked[0] == threads


# -- Memory that is kept -----------------------------------------------------------------------------------------------

KEEPS = [(-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20)]  # of <malloc.h>: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


@pytest.mark.parametrize("keep", [True, False])
def test_memory_is_kept_where_it_is_asked_for(mallopt, keep):
    Runtime(cpu_threads=1, keep_memory=keep).close()
    assert mallopt == (KEEPS if keep else [])


def test_a_libc_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr("distvae.distributed.device.ctypes", SimpleNamespace(CDLL=lambda name: SimpleNamespace()))
    Runtime(cpu_threads=1).close()


FAULTS = """
import resource
import torch
from distvae.distributed.runtime import Runtime

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for keep in (False, True):
    Runtime(cpu_threads=1, keep_memory=keep).close()
    faults()
    print(faults())
"""


def test_memory_that_is_kept_is_not_fetched_again():
    """Page faults of ten tensors of 64 MiB, one after the other, before and after it is told to keep them."""
    needs(hasattr(ctypes.CDLL(None), "mallopt"), "no mallopt")
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert without > 10 * max(kept, 10)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([{"seed": 0}, {"seed": 0}, {"seed": 0}], None),
        ([{"seed": 0}, {"seed": 0}, {"seed": 1}], "rank 2 has seed=1, but rank 0 has seed=0: start all ranks"),
        ([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 2, "b": 2}], "rank 1 has b=3, but rank 0 has b=2: start all ranks"),
        ([{"a": 1, "b": 2}, {"a": 1}], "rank 1 has b=None, but rank 0 has b=2: start all ranks"),
        ([{"a": 1, "b": 2}, {"a": 2, "b": 1}], "rank 1 has a=2, but rank 0 has a=1 (and 1 more): start all ranks"),
    ],
)
def test_all_ranks_learn_that_they_differ(monkeypatch, values, words):
    """Every rank takes part in the same gatherings, and the main process names the key and the rank."""
    sent = [[] for _ in values]

    def agree(rank):
        runtime = object.__new__(Runtime)
        runtime.rank, runtime.world_size = rank, len(values)
        gathered = iter([[hashed(value) for value in values], values])
        monkeypatch.setattr(runtime, "_gather_objects", lambda own: sent[rank].append(own) or next(gathered))
        runtime.agree(values[rank])

    def hashed(value):
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    for rank, value in enumerate(values):
        if words is None:
            agree(rank)
            assert sent[rank] == [hashed(value)]
            continue
        with pytest.raises(UserError) as caught:
            agree(rank)
        assert isinstance(caught.value, PeerError) == (rank > 0)
        assert rank > 0 or words in str(caught.value)
        assert sent[rank] == [hashed(value), value]
