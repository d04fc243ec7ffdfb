"""Sentences are encoded in chunks, by one rank or several, each to its own posterior."""

import pytest
import torch

from distvae.data.sentences import Sentences
from distvae.evaluation import encoding
from distvae.evaluation.encoding import encode, posteriors
from tests.evaluation.test_generation import VOCABULARY, tiny_model

ROWS = [VOCABULARY.encode(words.split()) for words in ("a b c", "", "d d d d d", "c", "b a", "a a a a")]


@pytest.mark.parametrize(("together", "chunk"), [(1, 2), (3, 4), (256, 2**14)])
def test_posteriors_are_the_encoders_one_by_one(monkeypatch, together, chunk):
    monkeypatch.setattr(encoding, "ENCODED_TOGETHER", together)
    monkeypatch.setattr(encoding, "CHUNK", chunk)
    model, done = tiny_model(), []
    model.train()
    found = encode(model, ROWS, done.append)
    assert model.training
    assert sum(done) == len(ROWS)
    model.eval()
    for mean, log_variance, row in zip(*found, ROWS, strict=True):
        expected = model.encoder(torch.tensor([row]), torch.tensor([len(row)]))
        torch.testing.assert_close(mean, expected.mean[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(log_variance, expected.log_variance[0], rtol=0, atol=1e-14)


def test_ranks_share_the_sentences(monkeypatch):
    """Each rank adds its own rows only, and a rank without any adds zeros: their sum is the work of one."""
    monkeypatch.setattr(encoding, "ENCODED_TOGETHER", 2)

    class Third:
        rank, world_size, device = 0, 3, torch.device("cpu")

        def __init__(self, rank):
            self.rank = rank

        def sum(self, values):
            return values

    model = tiny_model()
    parts = [next(posteriors(model, Sentences.of(ROWS), Third(rank))) for rank in range(3)]
    assert all((part.mean != 0).any(dim=1).sum() == 2 for part in parts)
    torch.testing.assert_close(sum(part.mean for part in parts), encode(model, ROWS).mean, rtol=0, atol=1e-14)


def test_no_sentence_has_no_posterior():
    assert encode(tiny_model(), []).mean.shape == (0, 2)
