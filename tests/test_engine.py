"""An engine's step against torch's own optimizers. Engine against engine: tests/distributed/test_engines.py."""

import copy
import math

import pytest
import torch

from distvae.config import ModelConfig, OptimizerConfig
from distvae.engine import Replicated, load_optimizer_state, make_engine, optimizer_state, set_learning_rate
from distvae.model import TextVAE
from distvae.runtime import Runtime

SIZES = ModelConfig(embedding_size=6, hidden_size=8, latent_size=3)
SETTINGS = {
    "sgd": OptimizerConfig(learning_rate=0.3, clip_norm=0.7),
    "sgd unclipped": OptimizerConfig(learning_rate=0.3, clip_norm=None),
    "adamw": OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.2, clip_norm=0.7),
}


@pytest.fixture
def runtime():
    runtime = Runtime(cpu_threads=1)
    yield runtime
    runtime.close()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TextVAE(SIZES, 20, 0, 1)


def give_gradients(parameters, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = scale * torch.randn(p.shape, generator=generator)


def assert_close(here, there):
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_torchs_own(runtime, model, name):
    settings, twin = SETTINGS[name], copy.deepcopy(model)
    if settings.name == "sgd":
        reference = torch.optim.SGD(twin.parameters(), 0.3)
    else:
        reference = torch.optim.AdamW(twin.parameters(), 0.01, weight_decay=0.2)
    engine = make_engine(runtime, model, settings)
    assert isinstance(engine, Replicated)
    for seed, (learning_rate, scale) in enumerate([(0.3, 1.0), (0.2, 1e-3), (0.1, 5.0)]):  # the second is not clipped
        set_learning_rate(engine, learning_rate)
        reference.param_groups[0]["lr"] = learning_rate
        give_gradients(model.parameters(), seed, scale)
        give_gradients(twin.parameters(), seed, scale)
        norm = engine.step()
        expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), settings.clip_norm or math.inf)
        reference.step()
        assert norm.item() == pytest.approx(expected.item())
        assert all(p.grad is None for p in model.parameters())
        assert_close(model, twin)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(runtime, model, name, bad):
    engine = make_engine(runtime, model, SETTINGS[name])
    give_gradients(model.parameters(), 0)
    engine.step()
    weights, known = copy.deepcopy(model), copy.deepcopy(optimizer_state(engine, dict(model.named_parameters())))
    give_gradients(model.parameters(), 1)
    next(model.parameters()).grad[2, 1] = bad
    assert not math.isfinite(engine.step())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights.parameters(), strict=True))
    now = optimizer_state(engine, dict(model.named_parameters()))
    assert now.keys() == known.keys()
    assert all(torch.equal(now[key], known[key]) for key in known)


def test_what_adamw_knows_goes_from_one_engine_to_another(runtime, model):
    names = [name for name, _ in model.named_parameters()]
    first = make_engine(runtime, model, SETTINGS["adamw"])
    assert all(not value.any() for value in optimizer_state(first, names).values())
    for seed in range(3):
        give_gradients(model.parameters(), seed)
        first.step()
    twin = copy.deepcopy(model)
    second, fresh = make_engine(runtime, twin, SETTINGS["adamw"]), copy.deepcopy(model)
    third = make_engine(runtime, fresh, SETTINGS["adamw"])
    known = copy.deepcopy(optimizer_state(first, names))
    assert known["step"] == 3
    assert set(known) == {"step"} | {f"{key}.{name}" for key in ("exp_avg", "exp_avg_sq") for name in names}
    load_optimizer_state(second, known)
    for engine, weights in ((first, model), (second, twin), (third, fresh)):
        give_gradients(weights.parameters(), 7)
        engine.step()
    assert_close(twin, model)
    with pytest.raises(AssertionError):
        assert_close(fresh, model)


def test_adamw_forgets(runtime, model):
    engine = make_engine(runtime, model, SETTINGS["adamw"])
    for seed in range(3):
        give_gradients(model.parameters(), seed)
        engine.step()
    twin = copy.deepcopy(model)
    fresh = make_engine(runtime, twin, SETTINGS["adamw"])
    load_optimizer_state(engine, {})
    for one, weights in ((engine, model), (fresh, twin)):
        give_gradients(weights.parameters(), 9)
        one.step()
    assert_close(model, twin)


def test_sgd_knows_nothing(runtime, model):
    engine = make_engine(runtime, model, SETTINGS["sgd"])
    give_gradients(model.parameters(), 0)
    engine.step()
    assert optimizer_state(engine, dict(model.named_parameters())) == {}
