import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from distvae.config.kl import KLConfig
from distvae.methods import FREE_BITS
from distvae.methods.kl import kl_per_dimension

FORMS = ["none", "dimension", "sentence_dimension", "sentence", "batch"]
QUICK = settings(max_examples=40, deadline=None)


def posterior(seed: int, size: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and log variances [b, m] in float64, leaves, of which some dimensions say much and others little."""
    draws = torch.Generator().manual_seed(seed)
    scale = torch.rand(dimensions, generator=draws, dtype=torch.float64) * 2
    mean = torch.randn(size, dimensions, generator=draws, dtype=torch.float64) * scale
    log_variance = torch.randn(size, dimensions, generator=draws, dtype=torch.float64) * scale
    return mean.requires_grad_(), log_variance.requires_grad_()


def shares(form: str, kl: torch.Tensor, rate: float, batch_mean: torch.Tensor | None = None) -> torch.Tensor:
    """A form's shares; without ``batch_mean``, ``kl`` is the whole batch."""
    bits = FREE_BITS[form]() if form == "none" else FREE_BITS[form](target_rate=rate)
    if bits.needs_batch_mean and batch_mean is None:
        batch_mean = kl.detach().mean(dim=0)
    return bits.shares(kl, batch_mean)


def by_hand(form: str, mean: list[list[float]], log_variance: list[list[float]], rate: float) -> float:
    """The KL term of a batch, from the forms' definitions, one number at a time."""
    size, dimensions = len(mean), len(mean[0])
    kl = [
        [(mean[i][d] ** 2 + math.exp(log_variance[i][d]) - 1 - log_variance[i][d]) / 2 for d in range(dimensions)]
        for i in range(size)
    ]
    if form == "none":
        return sum(kl[i][d] for i in range(size) for d in range(dimensions)) / size
    if form == "dimension":
        return sum(max(rate / dimensions, sum(kl[i][d] for i in range(size)) / size) for d in range(dimensions))
    if form == "sentence_dimension":
        return sum(max(rate / dimensions, kl[i][d]) for i in range(size) for d in range(dimensions)) / size
    if form == "sentence":
        return sum(max(rate, sum(kl[i])) for i in range(size)) / size
    assert form == "batch"
    return max(rate, sum(sum(kl[i]) for i in range(size)) / size)


def directly(form: str, kl: torch.Tensor, rate: float) -> torch.Tensor:
    """The KL term of a batch as one formula, for autograd: the batch mean is a function of every sentence here."""
    floor, each = kl.new_tensor(rate), kl.new_tensor(rate / kl.shape[1])
    return {
        "none": lambda: kl.sum() / len(kl),
        "dimension": lambda: torch.maximum(kl.mean(dim=0), each).sum(),
        "sentence_dimension": lambda: torch.maximum(kl, each).sum() / len(kl),
        "sentence": lambda: torch.maximum(kl.sum(dim=1), floor).mean(),
        "batch": lambda: torch.maximum(kl.sum() / len(kl), floor),
    }[form]()


# -- KL ----------------------------------------------------------------------------------------------------------------


@QUICK
@given(mean=st.floats(-50, 50), log_variance=st.floats(-20, 8))
def test_kl_is_that_of_torch_distributions(mean, log_variance):
    mean, log_variance = torch.tensor([[mean]]).double(), torch.tensor([[log_variance]]).double()
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * log_variance)), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_per_dimension(mean, log_variance), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.3, 0.2), (-2.0, 3.0), (0.1, 0.01)])
def test_kl_is_the_integral_of_its_definition(mean, variance):
    deviation = math.sqrt(variance)
    z = torch.linspace(mean - 12 * deviation, mean + 12 * deviation, 20001, dtype=torch.float64)
    q, p = Normal(mean, deviation), Normal(0.0, 1.0)
    expected = torch.trapezoid(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), z)
    kl = kl_per_dimension(torch.tensor([[mean]]).double(), torch.tensor([[variance]]).double().log())
    torch.testing.assert_close(kl[0, 0], expected, rtol=1e-6, atol=1e-9)


def test_kl_is_of_each_sentence_and_dimension():
    mean = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]])
    expected = torch.tensor([[0.0, 0.5, 2.0], [0.0, 0.0, 4.5]])
    assert torch.equal(kl_per_dimension(mean, torch.zeros(2, 3)), expected)
    log_variance = torch.tensor([[math.log(4.0)]]).double()
    assert kl_per_dimension(torch.zeros(1, 1).double(), log_variance).item() == pytest.approx(1.5 - math.log(2))


def test_kl_keeps_its_digits_near_zero():
    log_variance = torch.cat([sign * torch.logspace(-6, -1, 200) for sign in (-1, 1)]).unsqueeze(1)
    exact = log_variance.double()
    # A series, as double precision too loses digits here.
    series = 0.5 * exact.square() * (0.5 + exact / 6 + exact.square() / 24 + exact.pow(3) / 120 + exact.pow(4) / 720)
    epsilon = torch.finfo(torch.float32).eps
    error = (kl_per_dimension(torch.zeros_like(log_variance), log_variance).double() - series).abs()
    assert (error <= epsilon * log_variance.abs()).all()
    naive = 0.5 * (log_variance.exp() - 1 - log_variance)
    assert ((naive.double() - series).abs() > epsilon * log_variance.abs()).any()
    assert kl_per_dimension(torch.zeros(1, 1), torch.full((1, 1), 1e-2)).item() == pytest.approx(2.508354e-5, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kl_of_half_precision_is_float32(dtype):
    mean, log_variance = (values.detach().to(dtype) for values in posterior(0, 8, 4))
    kl = kl_per_dimension(mean, log_variance)
    assert kl.dtype == torch.float32
    assert torch.equal(kl, kl_per_dimension(mean.float(), log_variance.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_keeps_a_better_precision(dtype):
    mean, log_variance = (values.detach().to(dtype) for values in posterior(0, 8, 4))
    assert kl_per_dimension(mean, log_variance).dtype == dtype


def test_the_gradient_of_kl_is_the_closed_form():
    mean, log_variance = posterior(1, 6, 5)
    kl_per_dimension(mean, log_variance).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(log_variance.grad, 0.5 * (log_variance.detach().exp() - 1))


# -- Free bits ---------------------------------------------------------------------------------------------------------


def test_the_registry_holds_none_and_four_forms():
    assert list(FREE_BITS) == FORMS
    for form in FORMS:
        assert KLConfig(free_bits=form).free_bits == FREE_BITS[form]()


def test_forms_that_bound_a_batch_mean_say_so():
    assert [form for form in FORMS if FREE_BITS[form].needs_batch_mean] == ["dimension", "batch"]


@pytest.mark.parametrize(
    ("form", "at_two", "at_four"),
    [
        ("none", 9 / 3, 9 / 3),
        ("dimension", 1 + 8 / 3, 2 + 8 / 3),
        ("sentence_dimension", (2 + 5.5 + 4) / 3, (4 + 6.5 + 5) / 3),
        ("sentence", (2 + 4.5 + 3) / 3, (4 + 4.5 + 4) / 3),
        ("batch", 9 / 3, 4),
    ],
)
def test_forms_of_a_batch_worked_out_on_paper(form, at_two, at_four):
    kl = torch.tensor([[1.0, 0.5], [0.0, 4.5], [0.0, 3.0]], dtype=torch.float64)
    assert shares(form, kl, 2.0).mean().item() == pytest.approx(at_two)
    assert shares(form, kl, 4.0).mean().item() == pytest.approx(at_four)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_value_and_gradient_are_those_of_the_definition(form, seed):
    """The gradient against central differences of the definition, so that no formula of ours is on both sides."""
    mean, log_variance = posterior(seed, size=4, dimensions=3)
    rate = 0.5 + seed
    term = shares(form, kl_per_dimension(mean, log_variance), rate).mean()
    term.backward()
    plain = [mean.tolist(), log_variance.tolist()]
    assert term.item() == pytest.approx(by_hand(form, *plain, rate), rel=1e-12)
    step = 1e-6
    for values, gradient in zip(plain, (mean.grad, log_variance.grad), strict=True):
        for i, row in enumerate(values):
            for d, value in enumerate(row):
                row[d] = value + step
                above = by_hand(form, *plain, rate)
                row[d] = value - step
                below = by_hand(form, *plain, rate)
                row[d] = value
                assert gradient[i, d].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)


@QUICK
@given(
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 10**6),
    size=st.integers(1, 9),
    dimensions=st.integers(1, 6),
    rate=st.floats(0, 12),
)
def test_value_and_gradient_are_those_of_the_formula(form, seed, size, dimensions, rate):
    inputs = posterior(seed, size, dimensions)
    expected = directly(form, kl_per_dimension(*inputs), rate)
    term = shares(form, kl_per_dimension(*inputs), rate).mean()
    torch.testing.assert_close(term, expected)
    torch.testing.assert_close(torch.autograd.grad(term, inputs), torch.autograd.grad(expected, inputs))


@QUICK
@given(
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 10**6),
    size=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 9), max_size=5),
    rate=st.floats(0, 12),
)
def test_a_batch_cut_into_slices_is_the_same_batch(form, seed, size, cuts, rate):
    """Ranks and micro-batches, some of them empty: totals and gradients add up to the whole batch's."""
    inputs = posterior(seed, size, 4)
    kl = kl_per_dimension(*inputs)
    batch_mean = kl.detach().sum(dim=0) / size
    whole = shares(form, kl, rate, batch_mean)
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [shares(form, kl[start:stop], rate, batch_mean) for start, stop in zip(edges, edges[1:], strict=False)]
    assert [len(part) for part in parts] == [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
    assert torch.equal(torch.cat(parts), whole)
    gradient = [torch.zeros_like(values) for values in inputs]
    for part in parts:
        for total, share in zip(gradient, torch.autograd.grad(part.sum(), inputs, retain_graph=True), strict=True):
            total += share
    torch.testing.assert_close(tuple(gradient), torch.autograd.grad(whole.sum(), inputs))


@pytest.mark.parametrize("form", FORMS)
def test_no_sentence_has_no_shares(form):
    empty = torch.zeros(0, 3, requires_grad=True)
    found = shares(form, empty, 4.0, torch.tensor([1.0, 2.0, 3.0]))
    assert found.shape == (0,)
    assert found.sum().item() == 0
    assert torch.autograd.grad(found.sum(), empty)[0].shape == (0, 3)


@QUICK
@given(form=st.sampled_from(FORMS), seed=st.integers(0, 10**6), size=st.integers(1, 6))
def test_a_target_rate_of_zero_is_no_free_bits(form, seed, size):
    inputs = posterior(seed, size, 4)
    term, plain = (shares(name, kl_per_dimension(*inputs), 0.0) for name in (form, "none"))
    assert torch.equal(term, plain)
    gradients = [torch.autograd.grad(each.sum(), inputs) for each in (term, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "none"])
def test_below_the_target_rate_nothing_is_pressed(form):
    inputs = posterior(3, 5, 4)
    term = shares(form, kl_per_dimension(*inputs), 1e6).mean()
    assert term.item() == pytest.approx(1e6)
    for gradient in torch.autograd.grad(term, inputs):
        assert not gradient.any()


@pytest.mark.parametrize("form", [form for form in FORMS if FREE_BITS[form].needs_batch_mean])
def test_the_given_batch_mean_decides_and_takes_no_gradient(form):
    kl = torch.tensor([[3.0, 3.0], [5.0, 5.0]], requires_grad=True)
    for batch_mean, expected in ((torch.tensor([0.1, 0.1]), 4.0), (torch.tensor([9.0, 9.0]), 8.0)):
        batch_mean.requires_grad_()
        term = shares(form, kl, 4.0, batch_mean).mean()
        assert term.item() == expected
        (gradient,) = torch.autograd.grad(term, batch_mean, allow_unused=True, materialize_grads=True)
        assert not gradient.any()


@pytest.mark.parametrize("form", FORMS)
def test_shares_keep_their_precision(form):
    for dtype in (torch.float32, torch.float64):
        assert shares(form, torch.ones(3, 2, dtype=dtype), 4.0).dtype == dtype
