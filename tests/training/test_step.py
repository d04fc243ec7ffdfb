"""The training step, without a run folder: against a step made by hand."""

import copy
import math

import numpy as np
import pytest
import torch

from distvae.config.schema import Config, ModelConfig, OptimizerConfig
from distvae.data.sentences import Sentences
from distvae.distributed.engines import make_engine
from distvae.distributed.runtime import Runtime
from distvae.methods.annealing import Constant
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.kl import kl_per_dimension
from distvae.methods.objective import Objective
from distvae.model.vae import TextVAE
from distvae.training.step import Sums, TrainStep

KEY = ("train", 1, 1)
BATCH = np.array([3, 0, 4])


@pytest.fixture
def runtime():
    runtime = Runtime(cpu_threads=1)
    yield runtime
    runtime.close()


@pytest.fixture
def made(runtime):
    """A step, and its model."""
    torch.manual_seed(0)
    sizes = ModelConfig(embedding_size=6, hidden_size=8, latent_size=3)
    config = Config(model=sizes, optimizer=OptimizerConfig(batch_size=3, learning_rate=0.3, clip_norm=None))
    model = TextVAE(sizes, 20, 0, 1)
    return TrainStep(runtime, make_engine(runtime, model, config.optimizer), config, pad=0), model


def objective() -> Objective:
    return Objective(Constant(weight=0.5), NoFreeBits(), torch.device("cpu"))


def split() -> Sentences:
    rng = np.random.default_rng(0)
    return Sentences.of([rng.integers(2, 20, n).tolist() for n in (4, 7, 5, 6, 9)])


def test_a_step_minimises_the_mean_over_the_global_batch(made):
    step, model = made
    twin, sentences = copy.deepcopy(model), split()
    sums, norm = step(sentences, BATCH, KEY, objective())
    noise, losses, kls, res = step.noise(slice(0, 3), 3, 8, *KEY), [], [], []
    for row, number in enumerate(BATCH.tolist()):
        ids = torch.tensor(sentences[number], dtype=torch.long)[None]
        re, mean, log_variance = twin(ids, torch.tensor([ids.shape[1]]), noise.rows(slice(row, row + 1)))
        kls.append(kl_per_dimension(mean, log_variance)[0])
        res.append(re[0])
        losses.append(re[0] + 0.5 * kls[-1].sum())
    (sum(losses) / 3).backward()
    expected = [3.0, sum(res).item(), sum(losses).item(), *sum(kls).tolist()]
    assert sums.tolist() == [pytest.approx(expected, rel=1e-5)]
    assert norm.item() == pytest.approx(
        math.sqrt(sum(p.grad.square().sum().item() for p in twin.parameters())), rel=1e-4
    )
    for p, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, other - 0.3 * other.grad, rtol=1e-4, atol=1e-6)


def test_a_step_that_is_not_finite_adds_nothing(made):
    step, model = made
    with torch.no_grad():
        model.encoder.posterior.bias[0] = math.nan
    sums, norm = step(split(), BATCH, KEY, objective())
    assert not norm.isfinite()
    assert not sums.any()


def test_sums_add_steps_and_end_intervals(runtime):
    sums = Sums(2, torch.device("cpu"))
    sums.add(torch.tensor([[1.0, 10.0, 11.0, 1.0, 2.0], [1.0, 20.0, 22.0, 3.0, 4.0]]))
    assert sums.end_interval(runtime) == 5
    assert math.isnan(sums.end_interval(runtime))
    assert sums.running() == {"RE": 15, "KL": 5}


@pytest.fixture
def normalising(runtime):
    """A step of BN-VAE in two micro-batches, and its model."""
    torch.manual_seed(0)
    sizes = ModelConfig(embedding_size=6, hidden_size=8, latent_size=3, posterior="batch_norm")
    config = Config(model=sizes, optimizer=OptimizerConfig(batch_size=3, learning_rate=0.3, accumulation_steps=2))
    model = TextVAE(sizes, 20, 0, 1)
    return TrainStep(runtime, make_engine(runtime, model, config.optimizer), config, pad=0), model


def test_a_step_moves_the_running_statistics_by_a_tenth(normalising):
    step, model = normalising
    outputs = []
    for number in BATCH.tolist():
        ids = torch.tensor(split()[number], dtype=torch.long)[None]
        outputs.append(model.encoder.outputs(ids, torch.tensor([ids.shape[1]])).detach()[0, :3])
    sums, _ = step(split(), BATCH, KEY, objective())
    assert sums.shape == (1, 6)
    assert sums[0, 0] == 3
    norm, means = model.encoder.normalise, torch.stack(outputs)
    torch.testing.assert_close(norm.running_mean, 0.1 * means.mean(0))
    torch.testing.assert_close(norm.running_variance, 0.9 + 0.1 * means.var(0))


def test_a_skipped_step_leaves_the_running_statistics(normalising):
    step, model = normalising
    norm = model.encoder.normalise
    step(split(), BATCH, KEY, objective())
    before = copy.deepcopy(model.state_dict())
    poisoned = norm.register_forward_hook(lambda module, inputs, output: output * math.nan)
    _, size = step(split(), BATCH, KEY, objective())
    poisoned.remove()
    assert not size.isfinite()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    step(split(), BATCH, KEY, objective())
    assert not torch.equal(norm.running_mean, before["encoder.normalise.running_mean"])
