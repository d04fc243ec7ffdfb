"""The fused output layer and cross entropy against torch's own of the same logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distvae.model import cross_entropy
from distvae.model.cross_entropy import linear_cross_entropy
from distvae.model.draws import generator

IGNORE, WORDS, SIZE = 2, 7, 5


def drawn(rows: int, words: int = WORDS, size: int = SIZE, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """hidden, weight, targets of which some count nothing, and what comes from above."""
    draw = generator("cpu", 5, rows, words)
    hidden, weight, above = (
        torch.randn(shape, generator=draw, dtype=dtype) for shape in ((rows, size), (words, size), (rows,))
    )
    targets = torch.randint(words, (rows,), generator=draw)
    targets[1::4] = IGNORE
    return [hidden.requires_grad_(), weight.requires_grad_(), targets, above]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="none")


@pytest.fixture
def chunks(monkeypatch):
    """Bounds the rows of logits that there are at a time."""

    def bound(softmax: int, product: int, words: int = WORDS) -> None:
        monkeypatch.setitem(cross_entropy._SOFTMAX, "cpu", softmax * words + words - 1)
        monkeypatch.setitem(cross_entropy._PRODUCT, "cpu", product * words + words - 1)
        monkeypatch.setattr(cross_entropy, "_PRODUCT_ROWS", 1)

    return bound


@pytest.mark.parametrize("rows", [1, 2, 12, 23])
@pytest.mark.parametrize("softmax", [0, 1, 4, 5, 1000])
def test_losses_and_gradients_are_torchs(rows, softmax, chunks):
    chunks(softmax, 2 * softmax)
    hidden, weight, targets, above = drawn(rows)
    found, expected = linear_cross_entropy(hidden, weight, targets, IGNORE), plain(hidden, weight, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert not found[targets == IGNORE].any()
    gradients = [torch.autograd.grad(losses, (hidden, weight), above) for losses in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 12, 23])
@pytest.mark.parametrize(("softmax", "product"), [(1, 1), (2, 5), (5, 2), (1000, 4), (1000, 1000)])
def test_losses_without_a_gradient_are_the_same(rows, softmax, product, chunks):
    chunks(softmax, product)
    hidden, weight, targets, _ = drawn(rows)
    expected = plain(hidden, weight, targets)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, IGNORE), expected, rtol=0, atol=1e-13)
    found = linear_cross_entropy(hidden.detach(), weight.detach(), targets, IGNORE)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-13)


def test_gradients_are_those_of_finite_differences(chunks):
    chunks(3, 3)
    hidden, weight, targets, _ = drawn(7)
    assert torch.autograd.gradcheck(lambda *inputs: linear_cross_entropy(*inputs, targets, IGNORE), (hidden, weight))


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_of_the_two_can_stand_still(frozen):
    inputs, (targets, above) = drawn(9)[:2], drawn(9)[2:]
    inputs[frozen] = inputs[frozen].detach()
    gradients = [
        torch.autograd.grad(losses(*inputs), inputs[1 - frozen], above)
        for losses in (lambda *each: linear_cross_entropy(*each, targets, IGNORE), lambda *each: plain(*each, targets))
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


def test_a_row_that_counts_nothing_moves_nothing():
    hidden, weight, targets, above = drawn(6)
    losses = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE), IGNORE)
    assert not losses.any()
    for gradient in torch.autograd.grad(losses, (hidden, weight), above):
        assert not gradient.any()


# Logits of a row whose exponentials, or their sums, leave the range of float32, or nearly do.
EXTREMES = {
    "above and below": [500.0, -500.0, 499.0, 0.0],
    "all far below": [-500.0, -501.0, -503.0, -500.0],
    "all far above": [500.0, 500.0, 497.0, 450.0],
    "sums without full precision": [-96.0, -97.0, -95.5, -100.0],
    "nearly too low": [-58.0, -59.0, -57.5, -90.0],
    "nearly too high": [80.5, 79.0, 81.0, -80.0],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXTREMES)
def test_logits_beyond_the_range_of_exponentials_are_exact(name, dtype, chunks):
    """Rows of them and tame ones, alone in a chunk and together."""
    weight = torch.stack([torch.tensor(EXTREMES[name]), torch.tensor([0.5, -0.25, 1.0, 2.0])], dim=1).to(dtype)
    hidden, targets = torch.eye(2, dtype=dtype).repeat(4, 1), torch.arange(4).repeat_interleave(2)
    logits = (hidden @ weight.T).double().requires_grad_()
    expected = F.cross_entropy(logits, targets, reduction="none")
    (of_logits,) = torch.autograd.grad(expected.sum(), logits)
    # What a sum of such logits is rounded by, in float32 or better, and the gradient of the logits as it is kept.
    largest = logits.abs().max().item()
    loss_error = largest * (2**-52 if dtype == torch.float64 else 2**-23)
    error = loss_error + (2**-8 if dtype == torch.bfloat16 else 0)
    for rows in (1, 3, 1000):
        chunks(rows, rows, words=4)
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        losses = linear_cross_entropy(*inputs, targets, -1)
        torch.testing.assert_close(losses.double(), expected, rtol=0, atol=loss_error)
        of_hidden, of_weight = torch.autograd.grad(losses.sum(), inputs)
        exact = of_logits.T @ hidden.double()
        torch.testing.assert_close(of_weight.double(), exact, rtol=0, atol=4 * error)
        exact = of_logits @ weight.double()
        torch.testing.assert_close(of_hidden.double(), exact, rtol=0, atol=4 * error * largest)
        with torch.no_grad():
            found = linear_cross_entropy(*inputs, targets, -1)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=loss_error)


def test_logits_that_are_not_finite_are_not_hidden(chunks):
    chunks(2, 2)
    hidden, weight, targets, _ = drawn(8)
    targets[3] = IGNORE + 1
    with torch.no_grad():
        hidden[3, 0] = torch.nan
    losses = linear_cross_entropy(hidden, weight, targets, IGNORE)
    assert losses.isnan().nonzero().tolist() == [[3]]
    of_hidden, of_weight = torch.autograd.grad(losses.sum(), (hidden, weight))
    assert of_hidden.isnan().any(dim=1).nonzero().tolist() == [[3]]
    assert of_weight.isnan().all()


# -- Under autocast ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", [3, 1000])
def test_bf16_is_close_to_float32(softmax, chunks):
    words = 300
    chunks(softmax, softmax, words)
    hidden, weight, targets, _ = drawn(64, words, 40, torch.float32)
    with torch.no_grad():
        weight *= 0.5
    above = torch.rand(64, generator=generator("cpu", 6)) + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, targets, IGNORE)
        with torch.no_grad():
            torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, IGNORE), found)
    assert found.dtype == torch.float32
    # Of the same bf16 matrices, the logits alone are rounded: each by 2⁻⁹ of itself, and a loss by two of them.
    rounded = [values.bfloat16().float() for values in (hidden, weight)]
    logits = rounded[0] @ rounded[1].T
    error = (found - plain(*rounded, targets)).abs()
    assert (error <= 2**-8 * logits.abs().amax(dim=1) + 1e-5).all()
    assert error.max() > 1e-4
    expected = plain(hidden, weight, targets)
    for one, other in zip(
        torch.autograd.grad(found, (hidden, weight), above),
        torch.autograd.grad(expected, (hidden, weight), above),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-2 * other.norm()


# -- Memory ------------------------------------------------------------------------------------------------------------


class TensorSizes(TorchDispatchMode):
    """The bytes of every tensor that is made, its views not counted."""

    def __init__(self):
        super().__init__()
        self._kept = {}  # so that no address is used twice

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._kept[storage.data_ptr()] = storage
        return result

    def largest(self, count: int) -> list[int]:
        return sorted((storage.nbytes() for storage in self._kept.values()), reverse=True)[:count]


@pytest.mark.parametrize("bf16", [True, False])
def test_logits_are_held_once_in_the_products_precision(bf16, chunks):
    rows, words = 60, 200
    chunks(5, 20, words)
    hidden, weight, targets, above = drawn(rows, words, dtype=torch.float32)
    dtype = torch.bfloat16 if bf16 else torch.float32
    with TensorSizes() as made, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = linear_cross_entropy(hidden, weight, targets, IGNORE)
        torch.autograd.grad(losses, (hidden, weight), above, retain_graph=True)
    all_logits, some_logits = rows * words * dtype.itemsize, 5 * words * 4
    assert made.largest(2) == [all_logits, some_logits]
    saved = losses.grad_fn.saved_tensors
    assert [value.dtype for value in saved if value.numel() == rows * words] == [dtype]
    assert sum(value.nbytes for value in saved) < 1.2 * all_logits
    with TensorSizes() as made, torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, IGNORE)
    assert made.largest(1) == [20 * words * dtype.itemsize]
