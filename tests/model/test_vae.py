import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from distvae.config.schema import ModelConfig
from distvae.model.draws import generator
from distvae.model.vae import Noise, Posterior, TextVAE, initialise

PAD, BOS, EOS, UNKNOWN, A, B, C = range(7)
SIZES = ModelConfig(
    embedding_size=3, hidden_size=4, latent_size=2, dropout=0.25, init_range=0.9, embedding_init_range=1.5
)
SENTENCES = [[BOS, A, C, EOS], [BOS, EOS], [BOS, B, B, UNKNOWN, A, EOS], [BOS, C, EOS]]


def tiny_model(sizes: ModelConfig = SIZES, vocabulary_size: int = 7, fused_output: bool = True) -> TextVAE:
    """A float64 model whose weights are large enough that everything matters."""
    model = TextVAE(sizes, vocabulary_size, PAD, UNKNOWN, fused_output).double()
    initialise(model, sizes, generator("cpu", 1))
    return model


def padded(sentences: list[list[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    tokens = torch.full((len(sentences), width or int(lengths.max())), PAD)
    for row, sentence in zip(tokens, sentences, strict=True):
        row[: len(sentence)] = torch.tensor(sentence)
    return tokens, lengths


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("cpu", 2, *shape), dtype=torch.float64)


def coins(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator("cpu", 3, *shape)) < 0.6


def lstm_by_hand(lstm: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the LSTM's equations, with its gates in torch's order."""
    gates = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
    i, f, g, o = gates.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def posterior_by_hand(model: TextVAE, sentence: list[int]) -> Tensor:
    encoder = model.encoder
    h = c = torch.zeros(SIZES.hidden_size, dtype=torch.float64)
    for token in sentence:
        h, c = lstm_by_hand(encoder.lstm, encoder.embedding.weight[token], h, c)
    return encoder.posterior.weight @ h + encoder.posterior.bias


def reconstruction_by_hand(
    model: TextVAE,
    inputs: list[int],
    targets: list[int],
    z: Tensor,
    embedding_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
) -> Tensor:
    decoder = model.decoder
    c = decoder.latent_to_cell.weight @ z
    h = torch.tanh(c)
    total = torch.zeros((), dtype=torch.float64)
    for t, (token, target) in enumerate(zip(inputs, targets, strict=True)):
        x = decoder.embedding.weight[token] * (1 if embedding_scale is None else embedding_scale[t])
        h, c = lstm_by_hand(decoder.lstm, torch.cat([x, z]), h, c)
        logits = decoder.output.weight @ (h * (1 if output_scale is None else output_scale[t]))
        total -= logits[target] - torch.logsumexp(logits, 0)
    return total


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


def test_encoder_is_the_lstm_equations_up_to_the_end_of_the_sentence():
    model = tiny_model()
    mean, log_variance = model.encoder(*padded(SENTENCES))
    for i, sentence in enumerate(SENTENCES):
        expected = posterior_by_hand(model, sentence)
        torch.testing.assert_close(torch.cat([mean[i], log_variance[i]]), expected, rtol=0, atol=1e-14)


def test_reconstruction_is_the_lstm_equations():
    model, z = tiny_model(), normal(len(SENTENCES), 2)
    found = model.decoder.reconstruction(padded(SENTENCES)[0], z)
    expected = [reconstruction_by_hand(model, s[:-1], s[1:], z[i]) for i, s in enumerate(SENTENCES)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-13)


def test_first_state_is_c0_and_its_tanh():
    model, z = tiny_model(), normal(3, 2)
    hidden, cell = model.decoder.initial_state(z)
    torch.testing.assert_close(cell, (z @ model.decoder.latent_to_cell.weight.T)[None], rtol=0, atol=1e-15)
    assert torch.equal(hidden, torch.tanh(cell))


def test_reconstruction_counts_the_end_and_not_the_beginning():
    model, z = tiny_model(), normal(1, 2)
    log_p = model.decoder(torch.tensor([[BOS, A]]), z, model.decoder.initial_state(z))[0].log_softmax(dim=-1)[0]
    empty = model.decoder.reconstruction(torch.tensor([[BOS, EOS]]), z)
    one_word = model.decoder.reconstruction(torch.tensor([[BOS, A, EOS]]), z)
    assert empty.item() == pytest.approx(-log_p[0, EOS].item(), abs=1e-14)
    assert one_word.item() == pytest.approx(-(log_p[0, A] + log_p[1, EOS]).item(), abs=1e-14)


def test_sample_is_mean_and_scaled_noise():
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.log(torch.tensor([[4.0, 0.25]])))
    assert torch.equal(posterior.sample(torch.tensor([[0.5, 2.0]])), torch.tensor([[2.0, -1.0]]))


def test_forward_is_its_parts():
    model, (tokens, lengths) = tiny_model(), padded(SENTENCES)
    noise = Noise(normal(4, 2), coins(4, 5), coins(4, 5, 3), coins(4, 5, 4))
    re, mean, log_variance = model(tokens, lengths, noise)
    posterior = model.encoder(tokens, lengths)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(log_variance, posterior.log_variance)
    assert torch.equal(re, model.decoder.reconstruction(tokens, posterior.sample(noise.latent), noise))


def losses_and_gradients(model: TextVAE, sentences: list[list[int]], noise: Noise, width: int | None = None):
    model.zero_grad()
    re, mean, log_variance = model(*padded(sentences, width), noise)
    (re.sum() + mean.square().sum() + log_variance.exp().sum()).backward()
    return (re, mean, log_variance), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("extra", [1, 7])
def test_padding_changes_no_loss_and_no_gradient(extra):
    model, steps = tiny_model(), 5 + extra
    noise = Noise(normal(4, 2), coins(4, steps), coins(4, steps, 3), coins(4, steps, 4))
    plain, plain_gradients = losses_and_gradients(model, SENTENCES, noise)
    wide, wide_gradients = losses_and_gradients(model, SENTENCES, noise, width=6 + extra)
    torch.testing.assert_close(wide, plain, rtol=0, atol=1e-13)
    torch.testing.assert_close(wide_gradients, plain_gradients, rtol=1e-12, atol=1e-13)


def test_a_fused_output_changes_no_loss_and_no_gradient():
    noise = Noise(normal(4, 2), coins(4, 5), coins(4, 5, 3), coins(4, 5, 4))
    losses, gradients = zip(
        *(losses_and_gradients(tiny_model(fused_output=fused), SENTENCES, noise) for fused in (True, False)),
        strict=True,
    )
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_the_output_layers_losses_are_those_of_its_logits(fused):
    model, hidden, (tokens, _) = tiny_model(fused_output=fused), normal(4, 5, 4), padded(SENTENCES)
    output, targets = model.decoder.output, tokens[:, 1:]
    expected = -output(hidden).log_softmax(dim=2).gather(2, targets[:, :, None]).squeeze(2) * (targets != PAD)
    torch.testing.assert_close(output(hidden, targets), expected, rtol=0, atol=1e-13)


def test_a_batch_is_its_sentences_one_by_one():
    model = tiny_model()
    noise = Noise(normal(4, 2), coins(4, 5), coins(4, 5, 3), coins(4, 5, 4))
    together, gradients = losses_and_gradients(model, SENTENCES, noise)
    totals = [torch.zeros_like(gradient) for gradient in gradients]
    for i, sentence in enumerate(SENTENCES):
        own = Noise(*(part[i : i + 1] for part in vars(noise).values()))
        alone, own_gradients = losses_and_gradients(model, [sentence], own)
        torch.testing.assert_close([x[0] for x in alone], [x[i] for x in together], rtol=0, atol=1e-13)
        totals = [total + own for total, own in zip(totals, own_gradients, strict=True)]
    torch.testing.assert_close(gradients, totals, rtol=1e-12, atol=1e-13)


def test_dropout_scales_what_it_keeps_and_leaves_the_state_alone():
    model, z = tiny_model(), normal(4, 2)
    noise = Noise(z, keep_embeddings=coins(4, 5, 3), keep_outputs=coins(4, 5, 4))
    found = model.decoder.reconstruction(padded(SENTENCES)[0], z, noise)
    for i, s in enumerate(SENTENCES):
        scales = (noise.keep_embeddings[i].double() / 0.75, noise.keep_outputs[i].double() / 0.75)
        expected = reconstruction_by_hand(model, s[:-1], s[1:], z[i], *scales)
        assert found[i].item() == pytest.approx(expected.item(), abs=1e-13)


def test_masks_that_keep_all_only_scale():
    model, scaled, z = tiny_model(), tiny_model(), normal(4, 2)
    tokens, _ = padded(SENTENCES)
    all_kept = Noise(z, torch.ones(4, 5) > 0, torch.ones(4, 5, 3) > 0, torch.ones(4, 5, 4) > 0)
    with torch.no_grad():
        scaled.decoder.embedding.weight /= 0.75
        scaled.decoder.output.weight /= 0.75
    found = model.decoder.reconstruction(tokens, z, all_kept)
    torch.testing.assert_close(found, scaled.decoder.reconstruction(tokens, z), rtol=0, atol=1e-13)
    assert not torch.allclose(found, model.decoder.reconstruction(tokens, z))


def test_masks_that_drop_all_leave_the_uniform_distribution():
    model, z = tiny_model(), normal(4, 2)
    tokens, lengths = padded(SENTENCES)
    found = model.decoder.reconstruction(tokens, z, Noise(z, keep_outputs=torch.zeros(4, 5, 4) > 0))
    torch.testing.assert_close(found, (lengths - 1) * torch.tensor(math.log(7), dtype=torch.float64))


def test_masks_of_the_global_batch_are_cut_to_the_steps():
    model, z, tokens = tiny_model(), normal(4, 2), padded(SENTENCES)[0]
    wide = Noise(z, coins(4, 9), coins(4, 9, 3), coins(4, 9, 4))
    cut = Noise(z, wide.keep_words[:, :5], wide.keep_embeddings[:, :5], wide.keep_outputs[:, :5])
    found = model.decoder.reconstruction(tokens, z, wide)
    assert torch.equal(found, model.decoder.reconstruction(tokens, z, cut))


def test_word_dropout_hides_words_but_neither_the_beginning_nor_the_targets():
    model, z = tiny_model(), normal(1, 2)
    keep = torch.tensor([[False, False, True, False]])
    found = model.decoder.reconstruction(torch.tensor([[BOS, A, B, C, EOS]]), z, Noise(z, keep_words=keep))
    expected = reconstruction_by_hand(model, [BOS, UNKNOWN, B, UNKNOWN], [A, B, C, EOS], z[0])
    assert found.item() == pytest.approx(expected.item(), abs=1e-13)
    assert keep.tolist() == [[False, False, True, False]]


def test_one_step_at_a_time_is_the_whole_prefix():
    model, z = tiny_model(), normal(3, 2)
    tokens = torch.tensor([[BOS, A, B, B, C, UNKNOWN], [BOS, C, A, PAD, PAD, B], [BOS, EOS, A, A, A, A]])
    state = model.decoder.initial_state(z)
    whole, last = model.decoder(tokens, z, state)
    steps = []
    for t in range(tokens.shape[1]):
        logits, state = model.decoder(tokens[:, t : t + 1], z, state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-14)


def test_probabilities_of_all_sentences_and_of_all_that_is_none_sum_to_one():
    model, z = tiny_model(vocabulary_size=5), normal(1, 2)
    decoder, limit = model.decoder, 4

    def probabilities(strings: list[tuple[int, ...]]) -> Tensor:
        """Of these ids after `<s>`, whatever follows."""
        tokens = torch.tensor([[BOS, *ids] for ids in strings])
        return torch.exp(-decoder.reconstruction(tokens, z.expand(len(strings), -1)))

    ended, stray = 0.0, 0.0
    before = torch.ones(1)
    for length in range(limit):
        prefixes = list(product((BOS, UNKNOWN, A), repeat=length))
        ended += probabilities([(*prefix, EOS) for prefix in prefixes]).sum().item()
        # The softmax has a place for padding, too, which no sentence holds.
        tokens = torch.tensor([[BOS, *prefix] for prefix in prefixes])
        several = z.expand(len(prefixes), -1)
        logits, _ = decoder(tokens, several, decoder.initial_state(several))
        stray += (before * logits[:, -1].softmax(dim=1)[:, PAD]).sum().item()
        before = probabilities(list(product((BOS, UNKNOWN, A), repeat=length + 1)))
    assert 0.2 < ended < 0.9
    assert ended + stray + before.sum().item() == pytest.approx(1, abs=1e-13)


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
@pytest.mark.parametrize("fused", [True, False])
def test_posterior_and_losses_are_float32_under_bf16(fused):
    exact, model = tiny_model(), TextVAE(SIZES, 7, PAD, UNKNOWN, fused)
    model.load_state_dict(exact.state_dict())
    tokens, lengths = padded(SENTENCES)
    noise = normal(4, 2)
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        assert model.decoder.output(torch.ones(1, 4)).dtype == torch.bfloat16
        found = model(tokens, lengths, Noise(noise.float()))
    assert {value.dtype for value in found} == {torch.float32}
    for value, expected in zip(found, exact(tokens, lengths, Noise(noise)), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=0.03, atol=0.03)
