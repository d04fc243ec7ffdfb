"""CUDA graphs of training steps: the kernels of a forward and backward, recorded once per shape and then replayed.

A GPU runs a step of so small a model in less time than it takes to launch the kernels one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Eager runs before a step is recorded, in which libraries choose their algorithms and allocate memory.
WARM_UP = 3

# The most shapes to record. Batches of further shapes run eagerly.
MOST = 64

Compute = Callable[..., Tensor]


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    output: Tensor


class GraphedSteps:
    """Run ``compute(**inputs)``, which leaves gradients, by replaying a recording of it.

    Args:
        parameters: receive the gradients. A parameter has the same gradient tensor after every call; it holds the
            gradient of that call only.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]):
        self._parameters = list(parameters)
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._recorded: dict[Hashable, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, key: Hashable, compute: Compute, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return ``compute(**inputs)``, in a tensor that the next call with this key overwrites.

        Args:
            key: all that ``compute`` depends on, except the names, shapes and values of ``inputs``.
        """
        key = (key, *((name, value.shape) for name, value in inputs.items()))
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad = gradient
        if key not in self._recorded:
            if len(self._recorded) == MOST:
                return self._eager(compute, inputs)
            self._recorded[key] = self._record(compute, inputs)
        recorded = self._recorded[key]
        for name, held in recorded.inputs.items():
            held.copy_(inputs[name], non_blocking=True)
        recorded.graph.replay()
        return recorded.output

    def clear(self) -> None:
        """Forget all recordings, because steps of another kind begin."""
        self._recorded.clear()

    def _eager(self, compute: Compute, inputs: Mapping[str, Tensor]) -> Tensor:
        torch._foreach_zero_(self._gradients)
        return compute(**inputs)

    def _record(self, compute: Compute, inputs: Mapping[str, Tensor]) -> _Recorded:
        held = {name: value.clone() for name, value in inputs.items()}
        new_stream: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
        beside = new_stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._eager(compute, held)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._eager(compute, held)
        return _Recorded(graph, held, output)
