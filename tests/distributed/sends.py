"""Trains under torch's profiler, the arguments of each training after a `--`: writes what each of its steps sent.

The first argument is the file, JSON: of each training ``[[collective, bytes], …]`` as rank 0 saw it, the bytes being
those of the whole tensor. A training's arguments are the size of its vocabulary and a config. What is seen is a step in
its stride, and under local SGD the steps from one average to the next.
"""

import itertools
import json
import math
import tempfile
from pathlib import Path

import torch.distributed as dist
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from distvae.config.load import load_config
from distvae.distributed.runtime import Runtime
from scaling.measure import RandomSteps

ITEM = {"float": 4, "double": 8, "c10::BFloat16": 2}

# DDP lays its buckets out anew in its second step, and PowerSGD's first ones are whole.
WARM_UP = 3
TOKENS = 5


def messages(steps) -> list[tuple[str, int]]:
    """What the profiler sees of some steps, where collectives are carried out: DDP's own are among them."""
    # PowerSGD starts its messages one from the end of the other, in a thread of gloo's.
    threads = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, experimental_config=threads) as profiler:
        steps()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    found = []
    for event in events:
        name = event.get("name", "")
        if name.startswith("gloo:"):
            (shape,), (kind,) = event["args"]["Input Dims"], event["args"]["Input type"]
            parts = dist.get_world_size() if name == "gloo:all_gather" else 1
            found.append((name.removeprefix("gloo:"), ITEM[kind] * parts * math.prod(shape)))
    return found


def training(vocabulary_size: str, *config: str) -> list[tuple[str, int]]:
    """What a step sends of a training that the launcher and the config ask for."""
    settings = load_config(config[0], config[1:])
    runtime = Runtime(settings.optimizer, settings.communication, settings.cpu_threads)
    try:
        random = RandomSteps(runtime, settings, int(vocabulary_size), TOKENS)

        def steps(count: int) -> None:
            for _ in range(count):
                random.step(1, send=True)

        steps(WARM_UP)
        return messages(lambda: steps(settings.communication.local_sgd_steps or 1))
    finally:
        random = None
        runtime.close()


def main(arguments: list[str]) -> int:
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    by_dashes = itertools.groupby(arguments[1:], lambda word: word == "--")
    found = [training(*words) for dashes, words in by_dashes if not dashes]
    if dist.get_rank() == 0:
        Path(arguments[0]).write_text(json.dumps(found), encoding="utf-8")
    leave()
    return 0
