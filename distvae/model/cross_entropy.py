"""A fused linear output layer and cross entropy that holds the logits once, in the precision of the layer.

PyTorch's separate functions keep the logits, a float32 copy, their log-softmax and its gradient, which for large
vocabularies is most of a step's memory. Here the logits are overwritten by their gradient, a few rows at a time while
they are in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits per softmax, in float32: a CPU needs them to fit into its caches, a GPU needs enough work.
_SOFTMAX = {"cpu": 2**20, "gpu": 2**26}

# Logits per product when no gradient is needed. Every product reads the whole weight, so a minimum number of rows keeps
# it as fast as one product over all rows.
_PRODUCT = {"cpu": 2**23, "gpu": 2**26}
_PRODUCT_ROWS = 128

# Range of sums of exponentials in which float32 holds every term that matters.
_RANGE = 1e-25, 1e35


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """Return −log softmax(hidden · weightᵀ) at the targets, in nats.

    Under autocast the products use its precision; softmax and losses are in float32 or better.

    Args:
        hidden: [N, H].
        weight: [V, H].
        targets: [N].
        ignore: target that is not scored.

    Returns:
        [N], 0 where the target is ``ignore``.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            losses: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, ignore, dtype)  # type: ignore[no-untyped-call]
            return losses
        return _losses(hidden.to(dtype), weight.to(dtype), targets, ignore)


def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int) -> Tensor:
    losses = []
    rows = max(_PRODUCT_ROWS, _rows(_PRODUCT, weight))
    for some, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
        logits, pieces = some @ weight.t(), _rows(_SOFTMAX, weight)
        for part, at in zip(torch.split(logits, pieces), torch.split(wanted, pieces), strict=True):
            losses.append(_cross_entropy(part, at))
    return torch.where(targets == ignore, 0.0, torch.cat(losses))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int, dtype: torch.dtype) -> Tensor:
        ctx.dtypes = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        logits, losses, rows = hidden @ weight.t(), [], _rows(_SOFTMAX, weight)
        for part, at in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
            losses.append(_cross_entropy(part, at, gradient=True))
        counts = targets != ignore
        ctx.save_for_backward(hidden, weight, logits, counts)
        return torch.where(counts, torch.cat(losses), 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, of_logits, counts = ctx.saved_tensors
        # Scale the small matrices by each row's factor instead of writing the gradient of the logits again.
        factor = torch.where(counts, gradient, 0.0).to(hidden.dtype)[:, None]
        of_hidden = (of_logits @ weight).mul_(factor)
        of_weight = of_logits.t() @ (hidden * factor)
        return of_hidden.to(ctx.dtypes[0]), of_weight.to(ctx.dtypes[1]), None, None, None


def _cross_entropy(logits: Tensor, targets: Tensor, gradient: bool = False) -> Tensor:
    """Return −log softmax at the targets, [n], in float32 or better, for logits [n, V] and targets [n].

    With ``gradient``, overwrite the logits by the gradient of the losses.
    """
    targets = targets[:, None]
    if logits.dtype == torch.bfloat16 and logits.device.type == "cpu":
        # Save a pass by not subtracting each row's maximum. This loses nothing while the sums are in range.
        exponentials = logits.float().exp_()
        sums = exponentials.sum(dim=1, keepdim=True)
        if bool(((sums > _RANGE[0]) & (sums < _RANGE[1])).all()):
            losses = sums.log() - logits.gather(1, targets)
            if gradient:
                _write_gradient(logits, exponentials.div_(sums), targets)
            return losses.squeeze(1)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = torch.log_softmax(logits, dim=1, dtype=dtype)
    losses = -log_probabilities.gather(1, targets)
    if gradient:
        _write_gradient(logits, log_probabilities.exp_(), targets)
    return losses.squeeze(1)


def _write_gradient(logits: Tensor, probabilities: Tensor, targets: Tensor) -> None:
    logits.copy_(probabilities.scatter_add_(1, targets, probabilities.new_full(targets.shape, -1.0)))


def _rows(values: dict[str, int], weight: Tensor) -> int:
    """Return how many rows of logits hold at most so many values."""
    return max(1, values["cpu" if weight.device.type == "cpu" else "gpu"] // len(weight))
