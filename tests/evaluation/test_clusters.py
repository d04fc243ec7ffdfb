"""k-means on latents whose clusters are known."""

import numpy as np
import pytest

from distvae.evaluation.clusters import cluster
from distvae.evaluation.probes import Codes, Reading

LABELS = np.random.default_rng(0).integers(4, size=900)
CODES = Codes.of([f"l{i}" for i in LABELS[:600]], [f"l{i}" for i in LABELS[600:]])


def reading(x):
    return Reading("mean", x[:600], x[600:])


def test_clusters_that_are_the_classes():
    x = 5 * np.eye(4)[LABELS] + 0.1 * np.random.default_rng(1).standard_normal((900, 4))
    found = cluster(reading(x), CODES, 0)
    assert (found.clusters, found.nmi, found.accuracy.mean) == (4, pytest.approx(1), 1.0)
    assert 0 < found.nmi_by_chance < 0.03
    for seed in (1, 2**32):
        assert cluster(reading(x), CODES, seed).accuracy.mean == 1.0


def test_noise_has_the_nmi_of_chance():
    found = cluster(reading(np.random.default_rng(2).standard_normal((900, 5))), CODES, 0)
    assert found.nmi < 0.03
    assert abs(found.nmi - found.nmi_by_chance) < 0.015
    assert abs(found.accuracy.mean - 0.25) < 4 * found.accuracy.standard_error


def test_the_clusters_are_those_of_train():
    """In test the classes have changed places, so that no sentence has the class of its cluster."""
    x = np.concatenate([np.eye(4)[LABELS[:600]], np.eye(4)[(LABELS[600:] + 1) % 4]])
    found = cluster(reading(x), CODES, 0)
    assert (found.nmi, found.accuracy.mean) == (pytest.approx(1), 0.0)


def test_a_latent_that_never_varies_is_one_cluster():
    found = cluster(reading(np.full((900, 3), 0.1)), CODES, 0)
    assert (found.clusters, found.nmi, found.nmi_by_chance) == (1, 0.0, 0.0)
    assert found.accuracy.mean in {(LABELS[600:] == i).mean() for i in range(4)}


def test_clusters_come_from_sentences_without_labels_too():
    known = [f"l{i}" if row < 100 else None for row, i in enumerate(LABELS[:600])]
    codes = Codes.of(known, [None, *(f"l{i}" for i in LABELS[601:])])
    found = cluster(reading(5.0 * np.eye(4)[LABELS]), codes, 0)
    assert found.accuracy.mean == 1.0


def test_no_labels_is_refused():
    with pytest.raises(ValueError, match="0 labelled sentences"):
        cluster(reading(np.zeros((900, 2))), Codes.of([None] * 600, ["a"] * 300), 0)
