import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from distvae.config.schema import ModelConfig
from distvae.model.draws import Noise, generator
from distvae.model.vae import TextVAE, initialise
from tests.model.tiny import (
    NO_LATENT,
    PAD,
    POOLED,
    SENTENCES,
    SIZES,
    UNKNOWN,
    coins,
    losses_and_gradients,
    normal,
    padded,
    tiny_model,
)


def test_parameters_are_the_papers():
    shapes = {n: tuple(p.shape) for n, p in TextVAE(ModelConfig(), 4000, PAD, UNKNOWN).named_parameters()}
    assert shapes == {
        "encoder.embedding.weight": (4000, 128),
        "encoder.lstm.weight_ih_l0": (4 * 512, 128),
        "encoder.lstm.weight_hh_l0": (4 * 512, 512),
        "encoder.lstm.bias_ih_l0": (4 * 512,),
        "encoder.lstm.bias_hh_l0": (4 * 512,),
        "encoder.posterior.weight": (2 * 32, 512),
        "encoder.posterior.bias": (2 * 32,),
        "decoder.embedding.weight": (4000, 128),
        "decoder.latent_to_cell.weight": (512, 32),
        "decoder.lstm.weight_ih_l0": (4 * 512, 128 + 32),
        "decoder.lstm.weight_hh_l0": (4 * 512, 512),
        "decoder.lstm.bias_ih_l0": (4 * 512,),
        "decoder.lstm.bias_hh_l0": (4 * 512,),
        "decoder.output.weight": (4000, 512),
    }


def test_parameters_of_a_language_model_are_the_decoders():
    shapes = {n: tuple(p.shape) for n, p in TextVAE(ModelConfig(latent_size=0), 4000, PAD, UNKNOWN).named_parameters()}
    assert shapes == {
        "decoder.embedding.weight": (4000, 128),
        "decoder.lstm.weight_ih_l0": (4 * 512, 128),
        "decoder.lstm.weight_hh_l0": (4 * 512, 512),
        "decoder.lstm.bias_ih_l0": (4 * 512,),
        "decoder.lstm.bias_hh_l0": (4 * 512,),
        "decoder.output.weight": (4000, 512),
    }


def test_a_language_model_has_a_posterior_of_no_dimensions_and_trains_all_its_weights():
    model = tiny_model(NO_LATENT)
    noise = Noise(normal(4, 0), coins(4, 5), coins(4, 5, 3), coins(4, 5, 4))
    re, mean, log_variance = model(*padded(SENTENCES), noise)
    assert mean.shape == log_variance.shape == (4, 0)
    re.sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_forward_is_its_parts():
    model, (tokens, lengths) = tiny_model(), padded(SENTENCES)
    noise = Noise(normal(4, 2), coins(4, 5), coins(4, 5, 3), coins(4, 5, 4))
    re, mean, log_variance = model(tokens, lengths, noise)
    posterior = model.encoder(tokens, lengths)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(log_variance, posterior.log_variance)
    assert torch.equal(re, model.decoder.reconstruction(tokens, posterior.sample(noise.latent), noise))


@pytest.mark.parametrize("sizes", POOLED.values(), ids=POOLED)
@pytest.mark.parametrize("extra", [1, 7])
def test_padding_changes_no_loss_and_no_gradient(extra, sizes):
    model, steps = tiny_model(sizes), 5 + extra
    noise = Noise(normal(4, 2), coins(4, steps), coins(4, steps, 3), coins(4, steps, 4))
    plain, plain_gradients = losses_and_gradients(model, SENTENCES, noise)
    wide, wide_gradients = losses_and_gradients(model, SENTENCES, noise, width=6 + extra)
    torch.testing.assert_close(wide, plain, rtol=0, atol=1e-13)
    torch.testing.assert_close(wide_gradients, plain_gradients, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sizes", POOLED.values(), ids=POOLED)
def test_a_batch_is_its_sentences_one_by_one(sizes):
    model = tiny_model(sizes)
    noise = Noise(normal(4, 2), coins(4, 5), coins(4, 5, 3), coins(4, 5, 4))
    together, gradients = losses_and_gradients(model, SENTENCES, noise)
    totals = [torch.zeros_like(gradient) for gradient in gradients]
    for i, sentence in enumerate(SENTENCES):
        alone, own_gradients = losses_and_gradients(model, [sentence], noise.rows(slice(i, i + 1)))
        torch.testing.assert_close([x[0] for x in alone], [x[i] for x in together], rtol=0, atol=1e-13)
        totals = [total + own for total, own in zip(totals, own_gradients, strict=True)]
    torch.testing.assert_close(gradients, totals, rtol=1e-12, atol=1e-13)


def test_initial_weights_fill_their_ranges():
    sizes = ModelConfig(embedding_size=30, hidden_size=40, latent_size=20, init_range=0.01, embedding_init_range=0.1)
    model = TextVAE(sizes, 100, PAD, UNKNOWN)
    initialise(model, sizes, generator("cpu", 5))
    for name, parameter in model.named_parameters():
        bound = 0.1 if name in ("encoder.embedding.weight", "decoder.embedding.weight") else 0.01
        assert 0.9 * bound < parameter.abs().max() <= bound, name
        # U(−r, r) has the standard deviation r / √3; these have 40 draws and more.
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25), name


def test_initial_weights_are_set_by_their_generator_alone():
    models = []
    for seed, global_seed in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(global_seed)
        model = TextVAE(SIZES, 7, PAD, UNKNOWN)
        state = torch.get_rng_state()
        initialise(model, SIZES, generator("cpu", seed))
        assert torch.equal(torch.get_rng_state(), state)
        models.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(models[0], models[1])
    assert not (models[0] == models[2]).any()


def test_initialising_the_decoder_leaves_the_encoder():
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialise(model.decoder, SIZES, generator("cpu", 9))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}


# Not every CPU has what torch's oneDNN wants for an LSTM in bf16; torch's own code runs anywhere.
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("sizes", POOLED.values(), ids=POOLED)
@pytest.mark.parametrize("fused", [True, False])
def test_posterior_and_losses_are_float32_under_bf16(fused, sizes):
    exact, model = tiny_model(sizes), TextVAE(sizes, 7, PAD, UNKNOWN, fused)
    model.load_state_dict(exact.state_dict())
    tokens, lengths = padded(SENTENCES)
    noise = normal(4, 2)
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        assert model.decoder.output(torch.ones(1, 4)).dtype == torch.bfloat16
        found = model(tokens, lengths, Noise(noise.float()))
    assert {value.dtype for value in found} == {torch.float32}
    for value, expected in zip(found, exact(tokens, lengths, Noise(noise)), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("posterior", ["gaussian", "batch_norm", "du"])
@pytest.mark.parametrize("micro_batches", [2, 3, 9])
def test_micro_batches_change_nothing(posterior, micro_batches):
    sizes = replace(SIZES, posterior=posterior)
    noise, runs = Noise(normal(4, 2), coins(4, 5), coins(4, 5, 3), coins(4, 5, 4), coins(4, 2)), []
    for parts in (1, micro_batches):
        model = tiny_model(sizes)
        re, mean, log_variance = model(*padded(SENTENCES), noise, 3, parts)
        (re[:3].sum() + mean[:3].square().sum() + log_variance[:3].exp().sum()).backward()
        runs.append([re.detach(), mean.detach(), log_variance.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*runs, rtol=0, atol=1e-10)


def peak(model, tokens, noise, micro_batches):
    """Most bytes that a forward and backward hold at once."""
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        re, mean, log_variance = model(tokens, torch.full((32,), 20), noise, 32, micro_batches)
        (re.sum() + mean.sum() + log_variance.sum()).backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_micro_batches_need_the_memory_of_one():
    sizes = ModelConfig(embedding_size=16, hidden_size=32, latent_size=4, dropout=0.0, posterior="batch_norm")
    model, tokens = TextVAE(sizes, 100, PAD, UNKNOWN), torch.randint(4, 100, (32, 20))
    noise = Noise(torch.randn(32, 4))
    whole = peak(model, tokens, noise, 1)
    assert peak(model, tokens, noise, 4) < whole / 3
    assert peak(model, tokens, noise, 8) < whole / 5
