import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.config.schema import ModelConfig
from distvae.data.batches import share
from distvae.methods.posteriors import DUPosterior
from distvae.model.draws import BLOCK, Noise, blocks, generator, seed_of_numpy, sentence_noise, training_noise

SIZES = ModelConfig(
    embedding_size=3, hidden_size=4, latent_size=5, dropout=0.5, word_dropout=0.3, posterior=DUPosterior()
)
CPU = torch.device("cpu")
KEY = (1, "train", 2, 3)  # seed, stage, epoch, step
NAMES = [field.name for field in dataclasses.fields(Noise)]
SEVERAL = settings(max_examples=40, deadline=None)


def noise(rows: slice = slice(0, 8), size: int = 8, steps: int = 6, sizes: ModelConfig = SIZES, key=KEY) -> Noise:
    return training_noise(sizes, rows, size, steps, CPU, *key)


def stream(*key: int | str) -> list[float]:
    return torch.rand(4, generator=generator(CPU, *key)).tolist()


def assert_rate(values: torch.Tensor, expected: float) -> None:
    """The share of True is within 4 standard errors of ``expected``."""
    error = math.sqrt(expected * (1 - expected) / values.numel())
    assert abs(values.double().mean().item() - expected) < 4 * error


# -- A training step ---------------------------------------------------------------------------------------------------


@SEVERAL
@given(size=st.integers(1, 100), steps=st.integers(1, 9), cuts=st.lists(st.integers(0, 100), max_size=6))
def test_slices_hold_the_draws_of_the_whole_batch(size, steps, cuts):
    """However a global batch is cut, slices without a row included: bit for bit."""
    whole = noise(slice(0, size), size, steps)
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [noise(slice(*pair), size, steps) for pair in zip(edges, edges[1:], strict=False)]
    for name in NAMES:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@SEVERAL
@given(size=st.integers(1, 100), ranks=st.integers(1, 8), micros=st.integers(1, 3))
def test_ranks_and_micro_batches_hold_the_draws_of_the_whole_batch(size, ranks, micros):
    whole = noise(slice(0, size), size)
    parts = [noise(share(size, part, ranks * micros), size) for part in range(ranks * micros)]
    for name in NAMES:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@SEVERAL
@given(size=st.integers(1, 300), ends=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_a_rank_draws_its_rows_and_at_most_the_rest_of_two_blocks(size, ends):
    start, stop = sorted(min(end, size) for end in ends)
    drawn = blocks(slice(start, stop), size)
    if start == stop:
        assert drawn.stop == drawn.start
    else:
        assert drawn.start <= start < stop <= drawn.stop <= size
        assert drawn.stop - drawn.start <= stop - start + 2 * (BLOCK - 1)
        assert drawn.start % BLOCK == 0
        assert drawn.stop % BLOCK == 0 or drawn.stop == size


def test_a_rank_makes_no_draws_of_other_blocks(monkeypatch):
    """512 ranks of 32 sentences: each fills as many numbers as its own sentences need."""
    filled = []
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda self, *_, **__: filled.append(self.numel()) or self.zero_(), raising=True
    )
    noise(share(512 * BLOCK, 300, 512), 512 * BLOCK)
    assert filled == [BLOCK * SIZES.latent_size]


def test_a_batch_of_one_block_draws_all_rows_at_once():
    """The draws of small batches are those of earlier versions."""
    found = noise(slice(0, BLOCK), BLOCK)
    latent = torch.randn(BLOCK, 5, generator=generator(CPU, *KEY, "latent"))
    assert torch.equal(found.latent, latent)
    embeddings = torch.rand(BLOCK, 6, 3, generator=generator(CPU, *KEY, "embedding dropout"))
    assert torch.equal(found.keep_embeddings, embeddings >= 0.5)


def test_blocks_have_draws_of_their_own():
    """Also the last, shorter one."""
    latent = noise(slice(0, 70), 70).latent
    assert len({tuple(row) for row in latent.tolist()}) == 70
    assert torch.equal(latent[:BLOCK], noise(slice(0, BLOCK), BLOCK).latent)


def test_the_shapes_and_types_of_the_draws():
    found = noise(slice(2, 5), size=8, steps=6)
    assert [tuple(getattr(found, name).shape) for name in NAMES] == [(3, 5), (3, 6), (3, 6, 3), (3, 6, 4), (3, 5)]
    assert found.latent.dtype == torch.float32
    assert found.keep_words.dtype == found.keep_embeddings.dtype == found.keep_outputs.dtype == torch.bool


@pytest.mark.parametrize(
    "key",
    [
        (2, "train", 2, 3),
        (1, "pretrain", 2, 3),
        (1, "train", 3, 3),
        (1, "train", 2, 4),
        (1, "train", 3, 2),
        (1, "train", 23),
        (12, "train", 3),
    ],
)
def test_another_seed_stage_epoch_or_step_has_other_draws(key):
    ours, theirs = noise(size=64, rows=slice(0, 64)), noise(size=64, rows=slice(0, 64), key=key)
    for name in NAMES:
        values, others = getattr(ours, name), getattr(theirs, name)
        if values.dtype == torch.bool:
            agreeing = {"keep_words": 0.3**2 + 0.7**2, "keep_variances": 0.2**2 + 0.8**2}.get(name, 0.5)
            assert_rate(values == others, agreeing)
        else:
            assert not (values == others).any()


def test_the_same_key_has_the_same_draws_whatever_was_drawn_before():
    ours = noise()
    torch.manual_seed(9)
    torch.rand(7)
    theirs = noise()
    for name in NAMES:
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    noise()
    sentence_noise([1, 2], (3,), CPU, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_two_dropouts_have_draws_of_their_own():
    sizes = dataclasses.replace(SIZES, embedding_size=16, hidden_size=16)
    found = noise(slice(0, 64), size=64, sizes=sizes)
    assert_rate(found.keep_embeddings == found.keep_outputs, 0.5)


@pytest.mark.parametrize(("dropout", "word_dropout"), [(0.5, 0.3), (0.1, 0.9), (0.9, 0.05)])
def test_masks_keep_the_rest_of_what_is_dropped(dropout, word_dropout):
    sizes = dataclasses.replace(SIZES, dropout=dropout, word_dropout=word_dropout)
    found = noise(slice(0, 500), size=500, steps=20, sizes=sizes)
    assert_rate(found.keep_words, 1 - word_dropout)
    assert_rate(found.keep_embeddings, 1 - dropout)
    assert_rate(found.keep_outputs, 1 - dropout)
    assert_rate(found.keep_variances, 0.8)


def test_word_dropout_of_one_keeps_no_word():
    assert not noise(sizes=dataclasses.replace(SIZES, word_dropout=1.0)).keep_words.any()


def test_every_row_and_every_step_of_a_mask_is_drawn():
    keep = noise(slice(0, 32), size=32, steps=50).keep_outputs
    assert len({tuple(row.flatten().tolist()) for row in keep}) == 32
    assert len({tuple(step.flatten().tolist()) for step in keep.transpose(0, 1)}) == 50


def test_latent_draws_are_standard_normal():
    values = noise(slice(0, 4000), size=4000, steps=1).latent.double()
    assert abs(values.mean().item()) < 4 / math.sqrt(values.numel())
    assert abs(values.var().item() - 1) < 4 * math.sqrt(2 / values.numel())
    assert abs(values.pow(3).mean().item()) < 4 * math.sqrt(15 / values.numel())
    correlation = torch.corrcoef(values.T) - torch.eye(5)
    assert correlation.abs().max() < 4.5 / math.sqrt(len(values))


def test_a_probability_of_zero_has_no_mask():
    plain = noise(sizes=dataclasses.replace(SIZES, dropout=0.0, word_dropout=0.0, posterior="gaussian"))
    assert plain.keep_words is plain.keep_embeddings is plain.keep_outputs is plain.keep_variances is None
    words = noise(sizes=dataclasses.replace(SIZES, dropout=0.0))
    assert words.keep_embeddings is words.keep_outputs is None
    values = noise(sizes=dataclasses.replace(SIZES, word_dropout=0.0))
    assert values.keep_words is None
    everything = noise()
    assert torch.equal(words.keep_words, everything.keep_words)
    assert torch.equal(values.keep_outputs, everything.keep_outputs)
    for found in (plain, words, values):
        assert torch.equal(found.latent, everything.latent)


# -- A sentence of an evaluation ---------------------------------------------------------------------------------------


@SEVERAL
@given(sentences=st.lists(st.integers(0, 50), min_size=1, max_size=12), seed=st.integers(0, 2**64))
def test_a_sentences_draws_are_its_own_whatever_its_neighbours(sentences, seed):
    found = sentence_noise(sentences, (2, 3), CPU, seed, "nll")
    assert found.shape == (len(sentences), 2, 3)
    for number, values in zip(sentences, found, strict=True):
        assert torch.equal(values, sentence_noise([number], (2, 3), CPU, seed, "nll")[0])


def test_a_sentence_number_may_be_numpys():
    ours = sentence_noise([3, 5], (4,), CPU, 1, "elbo")
    assert torch.equal(sentence_noise(np.array([3, 5]), (4,), CPU, 1, "elbo"), ours)
    assert torch.equal(sentence_noise(iter([3, 5]), (4,), CPU, 1, "elbo"), ours)


def test_sentences_and_keys_have_draws_of_their_own():
    found = [sentence_noise(range(50), (4,), CPU, *key) for key in [(1, "elbo"), (2, "elbo"), (1, "nll"), (1,)]]
    assert len({tuple(values) for draws in found for values in draws.tolist()}) == 200


def test_sentences_draws_are_standard_normal():
    values = sentence_noise(range(2000), (5,), CPU, 0, "elbo").double()
    assert abs(values.mean().item()) < 4 / math.sqrt(values.numel())
    assert abs(values.var().item() - 1) < 4 * math.sqrt(2 / values.numel())
    neighbours = (values[1:] * values[:-1]).mean().item()
    assert abs(neighbours) < 4 / math.sqrt(values.numel())


# -- Keys --------------------------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_stream():
    assert stream(1, "latent", 3) == stream(1, "latent", 3)


def test_keys_that_read_alike_are_different_streams():
    keys = [
        (1, 23), (12, 3), (123,), (1, 2, 3), ("1", 23), (1, "23"), ("123",), ("1, 23",), ("12", "3"),
        (23, 1), (3, 12), (1, 23, 0), (0, 1, 23), (1, 23, ""), (), ("",), (0,),
        ("latent", 1), (1, "latent"), ("late", "nt", 1), (2**64 + 1, 23), (2**32 + 1, 23),
    ]  # fmt: skip
    assert len({tuple(stream(*key)) for key in keys}) == len(keys)


def test_many_keys_are_as_many_streams():
    keys = [(seed, epoch, step) for seed in range(3) for epoch in range(20) for step in range(50)]
    assert len({tuple(stream(*key)) for key in keys}) == len(keys)


def test_a_seed_of_any_size_is_one_of_numpy():
    """Seeds that numpy takes are unchanged, and larger ones are not all alike."""
    assert [seed_of_numpy(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    found = {seed_of_numpy(2**32 + offset) for offset in range(20)} | {seed_of_numpy(10**40)}
    assert len(found) == 21
    for seed in found:
        np.random.RandomState(seed)
