"""What the page shows of a model."""

import pytest
import torch
from datasets import Dataset

import distvae
from distvae.data import new_text
from distvae.data.new_text import Part
from distvae.data.sentences import Sentences
from distvae.explore.space import Space, build, groups


@pytest.fixture(scope="module")
def model(finished):
    return distvae.load(finished, "cpu")


def parts_of(model, **splits):
    def part(texts):
        return Part(Sentences.of([model.vocabulary.ids(text) for text in texts]), None, None, None)

    return {split: part(texts) for split, texts in splits.items()}


@pytest.fixture(scope="module")
def space(model):
    return build("mine", model, parts_of(model, train=model.sample(30), test=model.sample(5, seed=9)), 100)


def test_every_sentence_is_a_point(space, model):
    assert len(space.sentences) == len(space.points) == 35
    torch.testing.assert_close(space.mean, model.encode(space.sentences).mean)
    assert space.columns["split"] == ["train"] * 30 + ["test"] * 5
    assert space.columns["length"] == [len(model.vocabulary.ids(text)) - 2 for text in space.sentences]
    kl = 0.5 * (space.mean**2 + model.encode(space.sentences).log_variance.exp()).sum(dim=1)
    kl -= 0.5 * (1 + model.encode(space.sentences).log_variance).sum(dim=1)
    torch.testing.assert_close(space.kl.float(), kl, rtol=1e-4, atol=1e-4)


def test_of_more_sentences_as_many_are_drawn(model):
    few = build("mine", model, parts_of(model, all=model.sample(30)), 7)
    assert len(few.sentences) == 7
    assert "split" not in few.columns
    assert few.sentences == build("mine", model, parts_of(model, all=model.sample(30)), 7).sentences


def made(mean):
    return Space("made", None, [f"s{i}" for i in range(len(mean))], {}, mean, torch.zeros(len(mean)))


def test_the_axes_are_the_principal_components():
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 3.0, 1.0])
    space = made(draws + 5)
    torch.testing.assert_close(space.axes.abs(), torch.tensor([[0.0, 0], [1, 0], [0, 1]]), atol=0.05, rtol=0)
    torch.testing.assert_close(space.points.mean(dim=0), torch.zeros(2), atol=1e-3, rtol=0)
    assert space.active == [1, 2]
    assert made(draws[:, :1]).points.shape == (4000, 2)


def test_neighbours_are_the_nearest_once_each():
    space = made(torch.tensor([[0.0], [1.0], [3.0], [1.0]]))
    space.sentences[3] = "s1"
    assert space.neighbours(torch.tensor([0.9]), 2) == [(1, pytest.approx(0.1)), (0, pytest.approx(0.9))]
    assert [i for i, _ in space.neighbours(torch.tensor([0.9]), 9)] == [1, 0, 2]


def test_a_label_beyond_the_colours_is_other():
    values = [f"l{i}" for i in range(30) for _ in range(1 + (i < 24))] + [None]
    found = groups(values)
    assert found.count("other") == 6
    assert found[-1] is None
    assert groups(["a", None]) == ["a", None]


def test_labels_of_a_corpus_become_columns(model):
    texts = model.sample(3)
    part = parts_of(model, all=texts)["all"]
    kinds = Dataset.from_dict({"kind": ["x", "y", None]})
    labelled = Part(part.sentences, Dataset.from_dict({"text": texts}), kinds, None)
    found = build("mine", model, {new_text.ALL: labelled}, 10)
    assert found.columns["kind"] == ["x", "y", None]
    assert found.sentences == texts
