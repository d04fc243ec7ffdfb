"""Samples beside real sentences: the same every time, and the same real ones whatever the model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from distvae.api import load
from distvae.cli import main
from distvae.data import corpus
from distvae.data.sentences import Sentences
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation import mixture
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.texts import Comparison
from distvae.runs.sampling import compare_samples, fit_mixture


class _Always:
    """A decoder that says one word and ends."""

    def __init__(self, word: int, end: int, size: int):
        self.word, self.end, self.output = word, end, SimpleNamespace(weight=torch.zeros(size, 1))

    def initial_state(self, z):
        return 0

    def __call__(self, tokens, z, step):
        logits = torch.zeros(len(z), 1, len(self.output.weight))
        logits[..., self.end if step else self.word] = 9
        return logits, step + 1


DRAWN = Decoding(method="sample", seed=3)


@pytest.fixture(scope="module")
def model(finished):
    return load(finished)


@pytest.fixture
def own(model):
    return corpus.load(corpus.prepare(model.config.data, progress=False))


def test_samples_are_compared_with_as_many_real_sentences(model, own):
    steps: list[int] = []
    found = compare_samples(model.model, own, DRAWN, on_progress=steps.append)
    assert {name: each.sentences for name, each in found.items()} == {"samples": 20, "valid": 20}
    assert sum(steps) == 20
    assert found == compare_samples(model.model, own, DRAWN, count=99)
    fewer = compare_samples(model.model, own, DRAWN, count=5)
    assert {each.sentences for each in fewer.values()} == {5}
    real = [sentence.tolist() for sentence in own.valid[:]]
    train, test = ([sentence.tolist() for sentence in split[:]] for split in (own.train, own.test))
    of_all = Comparison(train, test, len(own.vocabulary)).statistics(real)
    assert found["valid"].reverse_ppl.mean == pytest.approx(of_all.reverse_ppl.mean)
    assert found["valid"].distinct_2 == of_all.distinct_2


def test_a_neighbourhood_of_like_sentences_does_not_count_as_valid(model):
    """Where valid is sorted, its first sentences resemble each other."""
    vocabulary = Vocabulary.closed(["a", "b", "c", "d"])
    a, b, c, d = vocabulary.encode(["a", "b", "c", "d"])[1:-1]
    bos, eos = vocabulary.bos, vocabulary.eos
    rows = [[bos, word, eos] for word in (a, b, c, d) for _ in range(30)]
    sorted_corpus = SimpleNamespace(
        vocabulary=vocabulary, train=Sentences.of(rows), valid=Sentences.of(rows), test=Sentences.of(rows)
    )
    always = SimpleNamespace(latent_size=1, decoder=_Always(a, eos, len(vocabulary)))
    found = compare_samples(always, sorted_corpus, Decoding(), count=30)
    assert found["samples"].distinct_1 == 1 / 30
    assert found["valid"].distinct_1 == 4 / 30


def test_the_command_prints_both(finished, model, own, capsys):
    assert main(["sample", str(finished), "--statistics", "--seed", "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = compare_samples(model.model, own, DRAWN)
    assert printed["samples"]["reverse_ppl"]["mean"] == expected["samples"].reverse_ppl.mean
    assert printed["decoding"]["method"] == "sample"
    assert main(["sample", str(finished), "--statistics", "-n", "7"]) == 0
    table = capsys.readouterr().out
    assert "reverse PPL" in table
    assert table.splitlines()[2].split() == ["sentences", "7", "7"]


def test_a_mixture_has_a_column_of_its_own(finished, model, own, capsys):
    words = ["sample", str(finished), "--statistics", "--seed", "3"]
    gaussians = ["--prior", "mixture", "--components", "4"]
    assert main([*words, *gaussians, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["samples", "mixture", "valid", "decoding"]
    steps: list[int] = []
    fitted = fit_mixture(model.model, own.train, 4, seed=3)
    expected = compare_samples(model.model, own, DRAWN, on_progress=steps.append, fitted=fitted)
    assert sum(steps) == 40
    for name, each in expected.items():
        assert printed[name]["reverse_ppl"]["mean"] == each.reverse_ppl.mean
    plain = compare_samples(model.model, own, DRAWN)
    assert (expected["samples"], expected["valid"]) == (plain["samples"], plain["valid"])
    assert main([*words, *gaussians]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["samples", "mixture", "valid"]


def test_of_many_training_sentences_some_are_encoded(model, own, monkeypatch):
    every = fit_mixture(model.model, own.train, 2, seed=0)
    monkeypatch.setattr(mixture, "SENTENCES", 20)
    some = fit_mixture(model.model, own.train, 2, seed=0)
    assert (every.means != some.means).any()
    numbers = mixture.chosen(len(own.train), 0)
    picked = Sentences.of([own.train[i] for i in numbers.tolist()])
    assert (fit_mixture(model.model, picked, 2, seed=0).means == some.means).all()
