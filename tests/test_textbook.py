"""The fast ways against the textbook's float32: losses, gradients, importance-weighted NLL, whole trainings."""

import numpy as np
import pytest
import torch

from distvae.config.schema import ModelConfig
from distvae.distributed.device import has_bf16
from distvae.evaluation.scoring import importance_log_weights, importance_weighted_nll
from distvae.methods.kl import kl_per_dimension
from distvae.model import draws
from distvae.model.draws import Noise
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE, initialise
from distvae.runs.results import load_results
from distvae.train import main
from tests.benchmarks.textbook import TextbookVAE
from tests.conftest import ROOT

VOCABULARY, PAD, UNKNOWN = 700, 0, 1
SIZES = ModelConfig(
    embedding_size=24, hidden_size=64, latent_size=8, dropout=0.0, init_range=0.2, embedding_init_range=1.0
)
NAMES = {
    "encoder_embedding": "encoder.embedding",
    "encoder_lstm": "encoder.lstm",
    "posterior": "encoder.posterior",
    "decoder_embedding": "decoder.embedding",
    "latent_to_cell": "decoder.latent_to_cell",
    "decoder_lstm": "decoder.lstm",
    "output": "decoder.output",
}
needs_bf16 = pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this CPU has no bfloat16 instructions")


def ours_of(name):
    module, parameter = name.split(".")
    return f"{NAMES[module]}.{parameter}"


@pytest.fixture(scope="module")
def pair():
    """The textbook's model and ours with its weights; some sentences, and the draws of their z."""
    ours = TextVAE(SIZES, VOCABULARY, PAD, UNKNOWN)
    initialise(ours, SIZES, draws.generator("cpu", 0, "weights"))
    textbook = TextbookVAE(SIZES, VOCABULARY, PAD)
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in textbook.named_parameters():
            parameter.copy_(weights[ours_of(name)])
    rng = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 13, (32,), generator=rng)
    tokens = torch.randint(4, VOCABULARY, (32, 12), generator=rng)
    tokens[torch.arange(12) >= lengths[:, None]] = PAD
    return textbook, ours, tokens, lengths, torch.randn(32, SIZES.latent_size, generator=rng)


def textbook_step(textbook, tokens, lengths, noise):
    mean, log_variance = textbook.encode(tokens, lengths)
    re = textbook.reconstruction(tokens, mean + torch.exp(0.5 * log_variance) * noise)
    kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1)
    textbook.zero_grad()
    (re + 0.7 * kl).mean().backward()
    return re, kl, {ours_of(name): p.grad.clone() for name, p in textbook.named_parameters()}


def our_step(ours, tokens, lengths, noise, bf16):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        re, mean, log_variance = ours(tokens, lengths, Noise(noise))
    kl = kl_per_dimension(mean, log_variance).sum(dim=1)
    ours.zero_grad()
    (re + 0.7 * kl).mean().backward()
    return re, kl, {name: p.grad.to_dense() for name, p in ours.named_parameters()}


def test_float32_steps_are_the_textbooks(pair):
    textbook, ours, *batch = pair
    re, kl, gradients = textbook_step(textbook, *batch)
    our_re, our_kl, our_gradients = our_step(ours, *batch, bf16=False)
    torch.testing.assert_close(our_re, re, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(our_kl, kl, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@needs_bf16
def test_bf16_steps_are_the_textbooks_within_its_rounding(pair):
    textbook, ours, *batch = pair
    re, kl, gradients = textbook_step(textbook, *batch)
    our_re, our_kl, our_gradients = our_step(ours, *batch, bf16=True)
    assert (our_re - re).abs().max() < 0.05
    assert (our_re - re).mean().abs() < 0.01  # no bias
    torch.testing.assert_close(our_kl, kl, rtol=0.01, atol=0.01)
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).norm() <= 0.02 * gradient.norm(), name


@needs_bf16
@pytest.mark.parametrize("samples", [50, 500])
def test_bf16_importance_sampling_is_without_bias(pair, samples):
    _, ours, tokens, lengths, _ = pair
    nll = {}
    with torch.inference_mode():
        posterior = Posterior(*ours.encoder(tokens, lengths))
        noise = torch.randn(32, samples, SIZES.latent_size, generator=torch.Generator().manual_seed(2))
        for bf16 in (False, True):
            weights = importance_log_weights(ours.decoder, tokens, posterior, noise, 64, bf16)
            nll[bf16] = importance_weighted_nll(weights)[0].numpy()
    assert np.abs(nll[True] - nll[False]).max() < 0.05
    assert abs((nll[True] - nll[False]).mean()) < 0.01


@pytest.mark.long
@needs_bf16
def test_a_fast_training_ends_where_a_plain_one_does(cache, tmp_path):
    config = str(ROOT / "configs" / "demo" / "pt_kla_sfb.yaml")
    short = [
        f"data.cache={cache}", "data.train_size=4000", "pretrain.max_epochs=0", "train.max_epochs=8",
        "kl={policy: constant, weight: 0.5}", "optimizer.name=adamw", "optimizer.learning_rate=0.003",
        "optimizer.warmup_steps=0",
        "evaluation.importance_samples=100",
    ]  # fmt: skip
    plain = ["speed.output_layer=plain", "speed.embedding_gradients=dense", "optimizer.mixed_precision=no"]
    fast = ["optimizer.mixed_precision=bf16"]
    nll = {"plain": [], "fast": []}
    for seed in range(3):
        for name, how in {"plain": plain, "fast": fast}.items():
            run = tmp_path / f"{name}-{seed}"
            assert main([config, f"run={run}", f"seed={seed}", *short, *how]) == 0
            nll[name].append(load_results(run).scores.nll.mean)
    assert np.mean(nll["fast"]) == pytest.approx(np.mean(nll["plain"]), abs=0.05)
