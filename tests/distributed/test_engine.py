"""An engine's step against torch's own optimizers. Engine against engine: tests/distributed/test_engines.py."""

import copy
import math

import pytest
import torch

from distvae.config.schema import ModelConfig, OptimizerConfig
from distvae.distributed.engines import make_engine
from distvae.distributed.engines.base import load_optimizer_state, optimizer_state, set_learning_rate, set_moving
from distvae.distributed.engines.replicated import Replicated
from distvae.distributed.runtime import Runtime
from distvae.model.draws import Noise
from distvae.model.vae import TextVAE
from distvae.system.errors import UserError

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


def give_rows(weight, seed, scale=1.0):
    """A gradient of a batch's words alone, of which some came more than once."""
    words = torch.tensor([[3, 0, 7, 3, 19, 3, 0]])
    values = scale * torch.randn(words.shape[1], weight.shape[1], generator=torch.Generator().manual_seed(seed))
    weight.grad = torch.sparse_coo_tensor(words, values, weight.shape, check_invariants=True)


def backward(engine, seed, parts=1):
    """Gradients of the mean loss of six sentences, in so many parts."""
    draw = torch.Generator().manual_seed(seed)
    tokens, lengths = torch.randint(2, 20, (6, 9), generator=draw), torch.randint(3, 10, (6,), generator=draw)
    tokens[torch.arange(9) >= lengths[:, None]] = 0
    latent = torch.randn(6, SIZES.latent_size, generator=draw).to(next(engine.module.parameters()).dtype)
    for rows in torch.arange(6).chunk(parts):
        re, mean, log_variance = engine.module(tokens[rows], lengths[rows], Noise(latent[rows]))
        ((re.sum() + mean.square().sum() + log_variance.square().sum()) / 6).backward()
    return tokens


def assert_close(here, there):
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_torchs_own(runtime, model, name):
    settings, twin = SETTINGS[name], copy.deepcopy(model)
    if settings.algorithm.name == "sgd":
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
    assert all(p.grad is None for p in model.parameters())
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


# -- Parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_parts_move_apart_as_by_two_optimizers(runtime, model, name):
    """The norm that clips is that of both parts; what does not move keeps every bit, and AdamW's counts."""
    settings, twin = SETTINGS[name], copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters()]

    def optimizer(part):
        if settings.algorithm.name == "sgd":
            return torch.optim.SGD(part.parameters(), 0.3)
        return torch.optim.AdamW(part.parameters(), 0.01, weight_decay=0.2)

    references = {part: optimizer(getattr(twin, part)) for part in ("encoder", "decoder")}
    engine = make_engine(runtime, model, settings, "dense", apart=True)
    for seed, moves in enumerate(["encoder", "encoder", "decoder", "encoder", "all", "decoder"]):
        give_gradients(model.parameters(), seed, 3.0)
        give_gradients(twin.parameters(), seed, 3.0)
        before = copy.deepcopy(dict(model.named_parameters()) | optimizer_state(engine, names))
        set_moving(engine, moves)
        norm = engine.step()
        expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), settings.clip_norm or math.inf)
        for part, reference in references.items():
            if moves in ("all", part):
                reference.step()
        assert norm.item() == pytest.approx(expected.item())
        assert all(p.grad is None for p in model.parameters())
        assert_close(model, twin)
        after = dict(model.named_parameters()) | optimizer_state(engine, names)
        for key, value in after.items():
            moved = moves == "all" or f"{moves}." in key or key.endswith(f".{moves}")
            assert torch.equal(value, before[key]) != moved, key
    if name == "adamw":
        state = optimizer_state(engine, names)
        assert (state["step.encoder"], state["step.decoder"]) == (4, 3)
        assert "step" not in state
        other = make_engine(runtime, copy.deepcopy(model), settings, "dense", apart=True)
        load_optimizer_state(other, state)
        again = optimizer_state(other, names)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], value) for key, value in state.items())


# -- SGD alone on a CPU ------------------------------------------------------------------------------------------------

EMBEDDINGS = ["encoder.embedding.weight", "decoder.embedding.weight"]


@pytest.mark.parametrize("clip_norm", [None, 1e-3, 0.7, 1e3])
@pytest.mark.parametrize("rows", [True, False])
def test_a_step_is_the_clipped_gradient_times_the_rate(runtime, model, clip_norm, rows):
    """w − η g min(1, clip / ‖g‖), to the last places of float32: a word of three is rounded as often."""
    engine = make_engine(runtime, model, OptimizerConfig(learning_rate=0.3, clip_norm=clip_norm))
    give_gradients(model.parameters(), 4)
    if rows:
        for seed, part in enumerate((model.encoder, model.decoder)):
            give_rows(part.embedding.weight, seed)
    weights = [p.detach().double() for p in model.parameters()]
    gradients = [p.grad.to_dense().double() for p in model.parameters()]
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert 1 < norm < 1e3
    assert engine.step().item() == pytest.approx(norm, rel=1e-6)
    scale = 1 if clip_norm is None else min(1, clip_norm / norm)
    for p, w, g in zip(model.parameters(), weights, gradients, strict=True):
        torch.testing.assert_close(p.double(), w - 0.3 * scale * g, rtol=0, atol=4e-7)
        assert p.grad is None
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip_norm", [None, 0.7])
def test_rows_that_are_not_finite_change_nothing(runtime, model, clip_norm, bad):
    engine = make_engine(runtime, model, OptimizerConfig(learning_rate=0.3, clip_norm=clip_norm))
    weights = copy.deepcopy(model)
    give_gradients(model.parameters(), 1)
    give_rows(model.decoder.embedding.weight, 2)
    model.decoder.embedding.weight.grad._values()[3, 1] = bad
    assert not math.isfinite(engine.step())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.3]


@pytest.mark.parametrize(
    ("name", "asked", "carried", "sparse"),
    [
        ("sgd", "auto", "alone", True),
        ("sgd", "rows", "alone", True),
        ("sgd", "dense", "alone", False),
        ("sgd", "auto", "DDP", False),
        ("adamw", "auto", "alone", False),
        ("adamw", "dense", "alone", False),
    ],
)
def test_gradients_of_embeddings_are_rows_where_they_can_be(runtime, model, monkeypatch, name, asked, carried, sparse):
    monkeypatch.setattr(Runtime, "engine", carried)
    for part in (model.encoder, model.decoder):
        part.embedding.sparse = not sparse  # as another engine may have left it
    engine = make_engine(runtime, model, SETTINGS[name], asked)
    backward(engine, 0)
    rows = [name for name, p in model.named_parameters() if p.grad.is_sparse]
    assert rows == (EMBEDDINGS if sparse else [])


@pytest.mark.parametrize(("name", "carried"), [("adamw", "alone"), ("sgd", "DDP"), ("sgd", "FSDP2")])
def test_rows_where_they_cannot_be_are_one_line(runtime, model, monkeypatch, name, carried):
    monkeypatch.setattr(Runtime, "engine", carried)
    with pytest.raises(UserError, match=r"^speed\.embedding_gradients=rows needs optimizer\.name=sgd .*$") as caught:
        make_engine(runtime, model, SETTINGS[name], "rows")
    assert f"not {name} and {runtime.processes} on cpu" in str(caught.value)


def test_rows_and_whole_gradients_take_the_same_steps(runtime, model):
    """Up to the rounding of a word's sum, whose occurrences come in another order."""
    twin = copy.deepcopy(model)
    engine = make_engine(runtime, model, SETTINGS["sgd"])
    whole = make_engine(runtime, twin, SETTINGS["sgd"], "dense")
    backward(engine, 0)
    backward(whole, 0)
    torch.testing.assert_close(engine.step(), whole.step(), rtol=1e-6, atol=0)
    for name, p in model.named_parameters():
        other = twin.get_parameter(name)
        if name in EMBEDDINGS:
            assert ((p - other).abs() <= 2**-23 * other.abs().max()).all()
        else:
            assert torch.equal(p, other), name
    for seed in (1, 2):
        backward(engine, seed)
        backward(whole, seed)
        assert engine.step().item() == pytest.approx(whole.step().item(), rel=1e-6)
    assert_close(model, twin)


@pytest.mark.parametrize("name", ["sgd", "sgd unclipped"])
def test_accumulated_rows_are_those_of_one_batch(runtime, model, name):
    """In float64, in which what is left is rounding."""
    model = model.double()
    models = [copy.deepcopy(model) for _ in range(3)]
    engines = [
        make_engine(runtime, each, SETTINGS[name], asked)
        for each, asked in zip(models, ("auto", "auto", "dense"), strict=True)
    ]
    for seed in range(3):
        norms = []
        for engine, parts in zip(engines, (3, 1, 1), strict=True):
            backward(engine, seed, parts)
            norms.append(engine.step().item())
        assert norms == pytest.approx([norms[2]] * 3, rel=1e-13)
    for other in models[1:]:
        for p, same in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, same, rtol=0, atol=1e-13)
