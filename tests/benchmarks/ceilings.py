"""The measured ceilings of this machine, and lower bounds of the time of a step or a scoring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from distvae.config.schema import ModelConfig
from distvae.distributed.device import has_bf16
from scaling.measure import wait


@dataclass(frozen=True)
class Ceilings:
    """Ceilings of one device."""

    float32: float  # operations per second of the fastest matrix product, 2 per multiply-add
    bfloat16: float  # 0: the device has none
    bandwidth: float  # bytes per second of a copy, read and written
    launch: float  # seconds of an operation on one value

    def floor(self, works: list[Phase], bf16: bool) -> float:
        """Return the least seconds: a piece of work takes the time of its operations or bytes, whichever is longer."""
        peak = self.bfloat16 if bf16 else self.float32
        return sum(max(work.operations / peak, work.bytes / self.bandwidth) for work in works)


@dataclass(frozen=True)
class Phase:
    """A piece of work that must end before the next can begin."""

    name: str
    operations: float
    bytes: float


class MeasuredMachine:
    """Measures the ceilings: the faster of products of square matrices and of the output layer's.

    The ceilings are medians over all calls of ``measure``, because the speed of a shared machine changes, and the
    contestants saw its average, not its best.
    """

    def __init__(self, device: torch.device, hidden_size: int, vocabulary_size: int, rows: int):
        self._device, self._seen = device, []
        self._products = []
        for m, k, n in [(2048, 2048, 2048), (rows, hidden_size, vocabulary_size)]:
            # A CPU without bfloat16 takes far longer for these products, and nobody asks for them.
            for dtype in (torch.float32, torch.bfloat16) if has_bf16(device) else (torch.float32,):
                a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
                self._products.append((dtype, 2 * m * k * n, a, b, torch.empty(m, n, device=device, dtype=dtype)))
        self._from = torch.zeros(2**26, device=device)
        self._to, self._one = torch.empty_like(self._from), torch.zeros(1, device=device)
        self.measure()
        self._seen.clear()

    def measure(self) -> None:
        peaks = {torch.float32: 0.0, torch.bfloat16: 0.0}
        for dtype, operations, a, b, out in self._products:
            rate = operations / self._seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
            peaks[dtype] = max(peaks[dtype], rate)
        bandwidth = 2 * self._from.nbytes / self._seconds(lambda: self._to.copy_(self._from))
        launch = self._seconds(lambda: [self._one.add_(1) for _ in range(1000)]) / 1000
        self._seen.append((peaks[torch.float32], peaks[torch.bfloat16], bandwidth, launch))

    def ceilings(self) -> Ceilings:
        return Ceilings(*(median(values) for values in zip(*self._seen, strict=True)))

    def _seconds(self, action: Callable[[], object]) -> float:
        wait(self._device)
        began = time.perf_counter()
        action()
        wait(self._device)
        return time.perf_counter() - began


def training_step(sizes: ModelConfig, vocabulary_size: int, sentences: int, steps: int, bf16: bool) -> list[Phase]:
    """Return the work of a training step on sentences of ``steps`` decoder steps, each byte moved once.

    Weights are float32 and cast once a step for bf16, their gradients are written and read once, the logits written
    once and read and written once for their gradient, which two products read.
    """
    e, h, m, v = sizes.embedding_size, sizes.hidden_size, sizes.latent_size, vocabulary_size
    width, rows, inputs = 2 if bf16 else 4, sentences * steps, sentences * (steps + 1)
    works = []
    for name, words, inside in [("encoder", inputs, e), ("decoder", rows, e + m)]:
        weights = (inside + h) * 4 * h
        moved = width * (weights + words * (inside + 4 * h + 2 * h))
        works += [
            Phase(f"{name} LSTM, forward", 2 * words * weights, moved),
            Phase(f"{name} LSTM, backward", 4 * words * weights, 2 * moved),
        ]
    logits, weights = width * rows * v, h * v
    works += [
        Phase("output, forward", 2 * rows * weights, width * (weights + rows * h) + logits),
        Phase("softmax", 0, 2 * logits),
        Phase("output, backward to the hidden", 2 * rows * weights, width * (weights + rows * h) + logits),
        Phase("output, backward to the weight", 2 * rows * weights, width * (weights + rows * h) + logits),
    ]
    dense = weights + (2 * e + m + 2 * h) * 4 * h + 16 * h + 2 * h * m + 2 * m + h * m
    works.append(Phase("gradient's norm and update", 0, 4 * dense * (1 + 3) + 4 * (inputs + rows) * e * 4))
    if bf16:
        works.append(Phase("casts", 0, 2 * (4 + 2) * dense))
    return works


def importance_sampling(
    sizes: ModelConfig, vocabulary_size: int, sentences: int, samples: int, steps: int, bf16: bool
) -> list[Phase]:
    """Return the work of decoding ``samples`` draws of each sentence."""
    e, h, m, v = sizes.embedding_size, sizes.hidden_size, sizes.latent_size, vocabulary_size
    width, rows = 2 if bf16 else 4, sentences * samples * steps
    weights = (e + m + h) * 4 * h
    return [
        Phase("LSTM", 2 * rows * weights, width * rows * (e + m + 6 * h)),
        Phase("output", 2 * rows * h * v, width * rows * h),
        Phase("softmax", 0, 0),  # of logits that never leave the cache
    ]
