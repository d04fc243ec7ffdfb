"""BN-VAE and DU-VAE over ranks and micro-batches, against whole batches in plain torch.

All runs are in float64, so that what is left is rounding, and end each epoch with a batch of a single sentence.
"""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distvae.config.load import load_config
from distvae.data import corpus
from distvae.data.batches import collate, share
from distvae.data.plans import training_plan
from distvae.methods.kl import kl_per_dimension
from distvae.model import draws
from distvae.model.batch_norm import EPSILON, MOMENTUM
from distvae.model.vae import TextVAE, initialise
from tests.compare import records
from tests.conftest import fork

SETTINGS = [
    "pretrain.max_epochs=0", "train.max_epochs=2", "kl={policy: linear, anneal_epochs: 2}",
    "optimizer.clip_norm=null", "evaluation.samples=0", "evaluation.importance_samples=1",
]  # fmt: skip
LOCAL = ["communication.local_sgd_steps=3", "checkpoint.every_steps=3", "checkpoint.keep=99"]
# Processes, micro-batches and other settings. Eight sentences over three processes and two micro-batches are uneven.
WAYS = {
    "1": (1, 1, []),
    "1 by 2": (1, 2, []),
    "2": (2, 1, []),
    "3 by 2": (3, 2, []),
    "local": (2, 1, LOCAL),
}
POSTERIORS = ["batch_norm", "du"]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch_norm")
    plan = []
    for name, (processes, micros, more) in WAYS.items():
        words = [str(tiny), *SETTINGS, f"optimizer.accumulation_steps={micros}", *more]
        runs = [[*words, f"run={folder / p / name}", f"model.posterior={p}"] for p in POSTERIORS]
        plan.append({"processes": processes, "double": True, "runs": runs})
    codes, told = fork(folder, plan)
    assert not any(code for group in codes for code in group), told
    return folder


class Textbook(nn.Module):
    """The model of a config in evaluation mode, around torch's own batch normalisation."""

    def __init__(self, config, data):
        super().__init__()
        self.model = TextVAE(config.model, len(data.vocabulary), data.vocabulary.pad, data.vocabulary.unknown)
        initialise(self.model, config.model, draws.generator("cpu", config.seed, "initial weights"))
        size, options = config.model.latent_size, config.model.posterior
        self.norm, self.scale = nn.BatchNorm1d(size, EPSILON, MOMENTUM, affine=False), options.mean_scale
        self.scales, self.shift = nn.Parameter(torch.full((size,), self.scale)), nn.Parameter(torch.zeros(size))
        self.du, self.dropout = options.name == "du", options.variance_dropout
        self.scales.requires_grad_(self.du)
        del self.model.encoder.normalise

    def forward(self, tokens, lengths, noise):
        mean, log_variance = self.model.encoder.outputs(tokens, lengths).chunk(2, dim=1)
        # Torch refuses to normalise a single sentence.
        self.norm.train(len(tokens) > 1)
        mean = self.norm(mean) * self.scale * self.scales / self.scales.square().mean().sqrt() + self.shift
        if self.du:
            kept = log_variance.exp() * noise.keep_variances / (1 - self.dropout)
            log_variance = (kept + 1 / (2 * math.pi * math.e)).log()
        z = mean + (0.5 * log_variance).exp() * noise.latent
        return self.model.decoder.reconstruction(tokens, z, noise), kl_per_dimension(mean, log_variance).sum(dim=1)

    def state(self):
        """What local SGD averages."""
        return [*self.parameters(), self.norm.running_mean, self.norm.running_var]

    def weights(self):
        """Under the names of an export."""
        norm = {"shift": self.shift, "running_mean": self.norm.running_mean, "running_variance": self.norm.running_var}
        norm |= {"scales": self.scales} if self.du else {}
        return self.model.state_dict() | {
            f"encoder.normalise.{name}": value.detach().clone() for name, value in norm.items()
        }


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_hand(tiny, posterior, parts=1, average_every=None):
    """Train epochs of whole batches, or, as local SGD does, of a share each.

    Returns the weights, the means of each epoch, and the weights after each average.
    """
    config = load_config(tiny, [*SETTINGS, f"model.posterior={posterior}"])
    data = corpus.load(corpus.prepare(config.data, progress=False))
    first = Textbook(config, data)
    models, epochs, averages = [first, *(copy.deepcopy(first) for _ in range(parts - 1))], [], []

    def average():
        with torch.no_grad():
            for several in zip(*(m.state() for m in models), strict=True):
                mean = torch.stack([value.detach() for value in several]).mean(0)
                for value in several:
                    value.copy_(mean)
        averages.append(copy.deepcopy(first.weights()))

    for epoch in (1, 2):
        sums = torch.zeros(2)
        plan = training_plan(data.train.lengths, 8, (config.seed, 1, epoch))
        for number, sentences in enumerate(plan, start=1):
            size, steps = len(sentences), int(data.train.lengths[sentences].max()) - 1
            for part, m in enumerate(models):
                batch = collate(data.train, sentences, share(size, part, parts), data.vocabulary.pad)
                if batch.count == 0:
                    continue
                key = (config.seed, "train", epoch, number)
                noise = draws.training_noise(config.model, batch.rows, size, steps, torch.device("cpu"), *key)
                re, kl = m(batch.tokens, batch.lengths, noise)
                sums += torch.stack([re.sum(), kl.sum()]).detach()
                m.zero_grad()
                ((re + epoch / 2 * kl).sum() * parts / size).backward()
                with torch.no_grad():
                    for p in m.parameters():
                        if p.grad is not None:
                            p -= config.optimizer.learning_rate * p.grad
            if average_every and (number % average_every == 0 or number == len(plan)):
                average()
        epochs.append((sums / 81).tolist())
    return first.weights(), epochs, averages


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_training_is_that_of_whole_batches(runs, tiny, double, posterior, name):
    weights, epochs, _ = by_hand(tiny, posterior, *((2, 3) if name == "local" else ()))
    run = runs / posterior / name
    rows = records(run)
    for row, (re, kl) in zip(rows, epochs, strict=True):
        assert row["train"]["re"] == pytest.approx(re, rel=1e-10)
        assert row["train"]["kl"] == pytest.approx(kl, rel=1e-8)
    assert_same(run / "checkpoints" / "latest", weights)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_local_sgd_averages_the_statistics_of_a_step_with_it(runs, tiny, double, posterior):
    _, _, averages = by_hand(tiny, posterior, 2, 3)
    (saved,) = (runs / posterior / "local" / "checkpoints").glob("*-step-000000006-*")
    assert_same(saved, averages[1])


def assert_same(checkpoint, weights):
    found = load_file(checkpoint / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-8, msg=name)
