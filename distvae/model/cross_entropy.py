"""A linear output layer and its cross entropy in one, which holds the logits once and in the precision of the layer.

torch's own keep the logits, a float32 copy, their log-softmax and its gradient: with a vocabulary of thousands that is
most of a step's memory. Here the logits become their own gradient, a few rows at a time, while these lie in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits whose softmax is taken at a time, in float32. On a CPU they fit into its caches; a GPU has to be kept busy.
_SOFTMAX = {"cpu": 2**20, "gpu": 2**26}

# Logits that there are at a time where no gradient is asked for, and rows of them at the least, for each product reads
# the whole weight: it is as fast as that of all.
_PRODUCT = {"cpu": 2**23, "gpu": 2**26}
_PRODUCT_ROWS = 128

# Sums of exponentials between which float32 holds every term that counts.
_RANGE = 1e-25, 1e35


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """−log softmax(hidden · weightᵀ) at the targets, in nats.

    Under autocast the products are in its precision; softmax and losses are in float32 or better.

    Args:
        hidden: [N, H].
        weight: [V, H].
        targets: [N], of which ``ignore`` counts nothing.

    Returns:
        [N], 0 where nothing counts.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            return _LinearCrossEntropy.apply(hidden, weight, targets, ignore, dtype)
        return _losses(hidden.to(dtype), weight.to(dtype), targets, ignore)


def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int) -> Tensor:
    losses = []
    rows = max(_PRODUCT_ROWS, _rows(_PRODUCT, weight))
    for some, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits, pieces = some @ weight.t(), _rows(_SOFTMAX, weight)
        for part, at in zip(logits.split(pieces), wanted.split(pieces), strict=True):
            losses.append(_cross_entropy(part, at))
    return torch.where(targets == ignore, 0.0, torch.cat(losses))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int, dtype: torch.dtype) -> Tensor:
        ctx.dtypes = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        logits, losses, rows = hidden @ weight.t(), [], _rows(_SOFTMAX, weight)
        for part, at in zip(logits.split(rows), targets.split(rows), strict=True):
            losses.append(_cross_entropy(part, at, gradient=True))
        counts = targets != ignore
        ctx.save_for_backward(hidden, weight, logits, counts)
        return torch.where(counts, torch.cat(losses), 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        hidden, weight, of_logits, counts = ctx.saved_tensors
        # A row's factor goes to the small matrices, so that the logits' gradient is not written again.
        factor = torch.where(counts, gradient, 0.0).to(hidden.dtype)[:, None]
        of_hidden = (of_logits @ weight).mul_(factor)
        of_weight = of_logits.t() @ (hidden * factor)
        return of_hidden.to(ctx.dtypes[0]), of_weight.to(ctx.dtypes[1]), None, None, None


def _cross_entropy(logits: Tensor, targets: Tensor, gradient: bool = False) -> Tensor:
    """−log softmax at the targets: logits [n, V], targets [n] → [n], in float32 or better. With ``gradient`` the logits
    become the losses' gradient."""
    targets = targets[:, None]
    losses = probabilities = None
    if logits.dtype == torch.bfloat16 and logits.device.type == "cpu":
        # Without a shift of each row, which takes a pass less. Nothing is lost while the sums are in range.
        exponentials = logits.float().exp_()
        sums = exponentials.sum(dim=1, keepdim=True)
        if bool(((sums > _RANGE[0]) & (sums < _RANGE[1])).all()):
            losses = sums.log() - logits.gather(1, targets)
            probabilities = exponentials.div_(sums) if gradient else None
    if losses is None:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_probabilities = torch.log_softmax(logits, dim=1, dtype=dtype)
        losses = -log_probabilities.gather(1, targets)
        probabilities = log_probabilities.exp_() if gradient else None
    if gradient:
        logits.copy_(probabilities.scatter_add_(1, targets, losses.new_full(losses.shape, -1.0)))
    return losses.squeeze(1)


def _rows(values: dict[str, int], weight: Tensor) -> int:
    """How many rows of logits, at the most, hold so many values."""
    return max(1, values["cpu" if weight.device.type == "cpu" else "gpu"] // len(weight))
