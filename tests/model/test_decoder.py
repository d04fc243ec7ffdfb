import math
from itertools import product

import pytest
import torch
from torch import Tensor

from distvae.model.draws import Noise
from tests.model.tiny import (
    BOS,
    EOS,
    NO_LATENT,
    PAD,
    SENTENCES,
    SIZES,
    UNKNOWN,
    A,
    B,
    C,
    coins,
    losses_and_gradients,
    normal,
    padded,
    reconstruction_by_hand,
    tiny_model,
)


@pytest.mark.parametrize("sizes", [SIZES, NO_LATENT], ids=["vae", "language model"])
def test_reconstruction_is_the_lstm_equations(sizes):
    model, z = tiny_model(sizes), normal(len(SENTENCES), sizes.latent_size)
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


@pytest.mark.parametrize("sizes", [SIZES, NO_LATENT], ids=["vae", "language model"])
def test_probabilities_of_all_sentences_and_of_all_that_is_none_sum_to_one(sizes):
    model, z = tiny_model(sizes, vocabulary_size=5), normal(1, sizes.latent_size)
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


@pytest.mark.parametrize("sizes", [SIZES, NO_LATENT])
@torch.no_grad()
def test_draws_of_a_sentence_have_the_losses_they_have_alone(sizes):
    model = tiny_model(sizes).eval()
    tokens, _ = padded(SENTENCES)
    sentence = torch.tensor([0, 0, 0, 1, 2, 2, 3, 0])
    z = normal(8, sizes.latent_size)
    found = model.decoder.losses_of_draws(tokens, z, sentence)
    torch.testing.assert_close(found, model.decoder.token_losses(tokens[sentence], z), rtol=0, atol=1e-13)
    assert sizes is NO_LATENT or (found[0] != found[1])[:3].all()
