"""CUDA graphs of training steps: the kernels of a forward and backward, recorded once for each shape and played again.

A step of a model as small as this one takes a GPU less time than it takes to launch its kernels one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Runs of a step before it is recorded: in them libraries choose their ways and take their memory.
WARM_UP = 3

# Shapes that are recorded; batches of more shapes run as ever.
MOST = 64

Compute = Callable[[Sequence["Tensor | None"]], Tensor]


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor | None, ...]
    output: Tensor


class GraphedSteps:
    """Runs ``compute(inputs)``, which leaves gradients, by playing a record of it.

    Args:
        parameters: whose gradients it leaves. They are the same tensors after every call, and hold that call's alone.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]):
        self._parameters = list(parameters)
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._recorded: dict[Hashable, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, key: Hashable, compute: Compute, inputs: Sequence[Tensor | None]) -> Tensor:
        """What ``compute(inputs)`` returns, in a tensor that the next call with this key writes anew.

        Args:
            key: of all that ``compute`` depends on beside its inputs' values; their shapes are added to it.
        """
        key = (key, *(None if value is None else value.shape for value in inputs))
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad = gradient
        if key not in self._recorded:
            if len(self._recorded) == MOST:
                return self._plain(compute, inputs)
            self._recorded[key] = self._record(compute, inputs)
        recorded = self._recorded[key]
        for held, value in zip(recorded.inputs, inputs, strict=True):
            if held is not None:
                held.copy_(value, non_blocking=True)
        recorded.graph.replay()
        return recorded.output

    def clear(self) -> None:
        """Forget all records: steps of another kind begin."""
        self._recorded.clear()

    def _plain(self, compute: Compute, inputs: Sequence[Tensor | None]) -> Tensor:
        torch._foreach_zero_(self._gradients)
        return compute(inputs)

    def _record(self, compute: Compute, inputs: Sequence[Tensor | None]) -> _Recorded:
        held = tuple(None if value is None else value.clone() for value in inputs)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._plain(compute, held)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._plain(compute, held)
        return _Recorded(graph, held, output)
