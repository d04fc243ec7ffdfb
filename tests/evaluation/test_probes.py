"""Linear probes on latents and texts whose answer is known."""

import importlib.util

import numpy as np
import pytest
import torch

from distvae.evaluation import probes
from distvae.evaluation.probes import Codes, Reading, bag_of_words, chance, over_draws, probe, readings
from distvae.model.posterior import Posterior
from distvae.system.errors import UserError

CLASSES = np.array(["a", "b", "c", "d"])


def drawn(n, seed=0):
    return np.random.default_rng(seed).integers(4, size=n)


def codes_of(train, test):
    return Codes.of(CLASSES[train].tolist(), CLASSES[test].tolist())


def posterior(mean, scale):
    mean = torch.as_tensor(mean, dtype=torch.float32)
    return Posterior(mean, torch.full_like(mean, 2 * np.log(scale)))


TRAIN, TEST = drawn(900), drawn(600, 1)
CODES = codes_of(TRAIN, TEST)
ONE_HOT = posterior(np.eye(4)[TRAIN], 0.01), posterior(np.eye(4)[TEST], 0.01)


def noise(n, seed, dimensions=8):
    return np.random.default_rng(seed).standard_normal((n, dimensions))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("count", [100, 900])
def test_a_latent_that_is_the_label_gives_it_away(number, count):
    found = probe(readings(*ONE_HOT, 0)[number], CODES, count, 0)
    assert (found.mean, found.standard_error) == (1.0, 0.0)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("count", [100, 900])
def test_noise_says_nothing(number, count):
    found = probe(readings(posterior(noise(900, 2), 1.0), posterior(noise(600, 3), 1.0), 0)[number], CODES, count, 0)
    assert abs(found.mean - 0.25) < 3 * found.standard_error
    assert 0.01 < found.standard_error < 0.03


def test_differences_far_below_the_noise_are_in_the_means_but_not_in_z():
    tiny = posterior(1e-3 * np.eye(4)[TRAIN], 1.0), posterior(1e-3 * np.eye(4)[TEST], 1.0)
    z, mean = readings(*tiny, 0)
    assert probe(mean, CODES, 900, 0).mean == 1.0
    assert probe(z, CODES, 900, 0) == chance(CODES)


def test_z_has_the_noise_of_the_posterior():
    z, mean = readings(posterior(np.zeros((4000, 2)), 0.5), posterior(np.ones((3, 2)), 0.5), 7)
    assert z.train.std(axis=0) == pytest.approx([0.5, 0.5], rel=0.05)
    assert (mean.train == 0).all()
    assert (z.test == 1).all()
    other = readings(posterior(np.zeros((4000, 2)), 0.5), posterior(np.ones((3, 2)), 0.5), 8)[0]
    assert (other.train != z.train).all()


def test_shuffled_labels_cannot_be_read():
    shuffled = codes_of(np.random.default_rng(5).permutation(TRAIN), TEST)
    found = probe(readings(*ONE_HOT, 0)[1], shuffled, 900, 0)
    assert found.mean < 0.5  # a linear probe can only permute the four classes
    assert probe(readings(*ONE_HOT, 0)[1], codes_of((TRAIN + 1) % 4, (TEST + 1) % 4), 900, 0).mean == 1.0


def test_the_accuracy_of_a_boundary_is_the_optimal_one():
    """Two normal classes at ±1 with unit variance: the best accuracy is Φ(1) = 0.8413."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=24_000)
    x = (2 * labels - 1 + rng.standard_normal(24_000))[:, None]
    found = probe(Reading("mean", x[:4000], x[4000:]), codes_of(labels[:4000], labels[4000:]), 4000, 0)
    assert found.standard_error == pytest.approx(np.sqrt(0.8413 * 0.1587 / 20_000), rel=0.02)
    assert abs(found.mean - 0.8413) < 4 * found.standard_error


def test_missing_labels_are_left_out():
    blank = [None if i % 3 == 0 else label for i, label in enumerate(CLASSES[TRAIN])]
    mean = posterior(np.where(np.arange(900)[:, None] % 3, np.eye(4)[TRAIN], 99.0), 0.01)
    codes = Codes.of(blank, [None, *CLASSES[TEST][1:]])
    assert (len(codes.labelled), len(codes.tested)) == (600, 599)
    assert probe(readings(mean, ONE_HOT[1], 0)[1], codes, 900, 0).mean == 1.0


def test_a_label_that_train_lacks_is_an_error():
    codes = Codes.of(["a", "b"] * 50, ["a", "b", "z", "z"])
    x = np.array([[0.0], [1.0]] * 50)
    found = probe(Reading("mean", x, np.array([[0.0], [1.0], [0.0], [1.0]])), codes, 100, 0)
    assert codes.classes == ("a", "b")
    assert found.mean == 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_labelled_sentences_than_classes(count):
    found = probe(readings(*ONE_HOT, 0)[1], CODES, count, 0)
    assert 0 < found.mean <= min(count, 4) / 4 + 0.05
    assert 0 < found.standard_error < 0.3


@pytest.mark.parametrize("number", [0, 1])
def test_one_class_is_always_right(number):
    codes = Codes.of(["a"] * 900, ["a"] * 600)
    found = probe(readings(*ONE_HOT, 0)[number], codes, 10, 0)
    assert (found.mean, found.standard_error) == (1.0, 0.0)
    assert chance(codes).mean == 1.0


def test_a_latent_that_never_varies_leaves_the_most_frequent_class():
    train = np.array([0] * 400 + [1] * 500)
    dead = Reading("mean", np.full((900, 3), 0.1), np.full((600, 3), 0.1))
    codes = codes_of(train, TEST)
    found = probe(dead, codes, 900, 0)
    assert found.mean == chance(codes).mean == (TEST == 1).mean()


def test_chance_is_that_of_train():
    codes = Codes.of(["a", "a", "b"], ["b", "b", "b", "a"])
    assert chance(codes).mean == 0.25


def test_a_bag_of_words_counts_tokens_between_the_ends():
    reading = bag_of_words([np.array([1, 5, 4, 5, 2]), np.array([1, 2])], [np.array([1, 3, 2])], 6)
    assert reading.train.toarray().tolist() == [[0, 0, 0, 0, 1, 2], [0] * 6]
    assert reading.test.toarray().tolist() == [[0, 0, 0, 1, 0, 0]]


def test_a_bag_of_words_knows_what_words_tell():
    rng = np.random.default_rng(0)
    words = [np.array([0, 10 + label, *rng.integers(20, 40, size=6), 1]) for label in (*TRAIN, *TEST)]
    assert probe(bag_of_words(words[:900], words[900:], 50), CODES, 900, 0).mean == 1.0


def test_more_labels_than_there_are_is_all():
    reading = readings(posterior(noise(900, 2), 1.0), ONE_HOT[1], 0)[0]
    reading = Reading("z", reading.train[:, :4], reading.test)
    assert probe(reading, CODES, 5000, 0) == probe(reading, CODES, 900, 0)


def test_the_seed_decides():
    x = np.eye(4)[[*TRAIN, *TEST]] + 0.7 * noise(1500, 4, 4)
    found = [probe(Reading("mean", x[:900], x[900:]), CODES, 30, seed).mean for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert 0.3 < found[0] < 0.99


def test_errors_over_draws_and_over_sentences_add_up():
    hits = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    found = over_draws(hits)
    assert found.mean == 0.5
    sentences = np.std([1, 0.5, 0.5, 0], ddof=1) / 2
    draws = np.std([0.75, 0.25], ddof=1) / np.sqrt(2)
    assert found.standard_error == pytest.approx(np.hypot(sentences, draws))
    assert over_draws(hits[:1]).standard_error == pytest.approx(np.std(hits[0], ddof=1) / 2)
    assert over_draws(hits[:, :1]).standard_error is None


def test_no_labels_is_refused():
    with pytest.raises(ValueError, match="0 labelled sentences"):
        probe(readings(*ONE_HOT, 0)[0], Codes.of([None] * 900, ["a"] * 600), 10, 0)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"distvae probe needs scikit-learn: pip install 'distvae\[probe\]'"):
        probes.check_installed("distvae probe")
