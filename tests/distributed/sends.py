"""What torch really sends in a training step, for test_scaling.py: started by a launcher, prints JSON.

``{case: [[collective, bytes], …]}`` as rank 0 saw it, the bytes being those of the whole tensor.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.profiler import ProfilerActivity, profile

from distvae.config import ModelConfig
from distvae.model import Noise, TextVAE

ITEM = {"float": 4, "double": 8, "c10::BFloat16": 2}


def messages(step) -> list[tuple[str, int]]:
    """What the profiler sees of a step."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
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
            found.append((name.removeprefix("gloo:"), ITEM[kind] * parts * torch.Size(shape).numel()))
    return found


def backward(model) -> None:
    tokens = torch.full((1, 6), 2)
    outputs = model(tokens, torch.tensor([6]), Noise(torch.zeros(1, 32)))
    sum(output.sum() for output in outputs).backward()


def bf16(state, bucket):
    """Torch's own, under a name that it does not refuse on a CPU."""
    return default_hooks.bf16_compress_hook(state, bucket)


def ddp(vocabulary_size: int, hook=None) -> list[tuple[str, int]]:
    model = DistributedDataParallel(TextVAE(ModelConfig(), vocabulary_size, 0, 1))
    if hook is not None:
        model.register_comm_hook(None, hook)
    # The first backward sends one bucket, and the second lays them out anew.
    for _ in range(3):
        backward(model)
    return messages(lambda: backward(model))


def powersgd(rank: int, group=None, **options) -> list[tuple[str, int]]:
    """The hook starts its messages one from the end of the other, in threads that no profiler follows."""
    found, real = [], dist.all_reduce

    def all_reduce(tensor, *arguments, **keywords):
        found.append(("all_reduce", tensor.numel() * tensor.element_size()))
        return real(tensor, *arguments, **keywords)

    state = PowerSGDState(group, rank, start_powerSGD_iter=2)
    model = DistributedDataParallel(TextVAE(ModelConfig(), 300, 0, 1), process_group=group, **options)
    model.register_comm_hook(state, powerSGD_hook)
    for _ in range(3):
        backward(model)
    dist.all_reduce = all_reduce
    backward(model)
    dist.all_reduce = real
    return found


def local_sgd() -> list[tuple[str, int]]:
    model = TextVAE(ModelConfig(), 300, 0, 1)
    return messages(lambda: average_parameters(model.parameters(), dist.group.WORLD))


def fsdp2() -> list[tuple[str, int]]:
    model = TextVAE(ModelConfig(), 301, 0, 1)  # an odd number of rows, to be padded
    fully_shard(model, reshard_after_forward=True)

    def step():
        backward(model)
        get_total_norm([p.grad for p in model.parameters()]).full_tensor()

    step()
    return messages(step)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # Over gloo, PowerSGD's messages of several buckets overtake one another and do not match: one bucket among two
    # processes, and several in a group of one.
    alone, _ = dist.new_subgroups(group_size=1)
    found = {
        "ddp, 3000 words": ddp(3000),
        "ddp, 300 words": ddp(300),
        "bf16, 3000 words": ddp(3000, bf16),
        "powersgd of rank 3, one bucket": powersgd(3, bucket_cap_mb=64),
        "powersgd of rank 4": powersgd(4, alone),
        "local SGD": local_sgd(),
        "fsdp2": fsdp2(),
    }
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()
