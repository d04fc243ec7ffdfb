"""Whether clusters of z are the classes of a label: k-means, normalised mutual information, accuracy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from distvae.evaluation.probes import Codes, Reading
from distvae.evaluation.scores import Estimate, mean_estimate
from distvae.model.draws import seed_of_numpy

# Starts of k-means, of which the best is kept, and shuffles of labels that show what chance gives.
STARTS, SHUFFLES = 4, 20


@dataclass(frozen=True)
class Clusters:
    """How clusters agree with the classes of a label.

    Attributes:
        clusters: number of them, that of the classes, or of distinct points if these are fewer.
        nmi: mutual information of cluster and class in test, divided by the mean of their entropies.
        nmi_by_chance: the same with the labels of test shuffled, which is above 0 for few sentences of many classes.
        accuracy: share of test whose cluster has been assigned to its class; see ``cluster``.
    """

    clusters: int
    nmi: float
    nmi_by_chance: float
    accuracy: Estimate


def cluster(reading: Reading, codes: Codes, seed: int) -> Clusters:
    """Cluster train by k-means, without its labels, and compare the clusters of test with its labels.

    Each cluster is assigned to a class, each class to one cluster, such that most sentences of train have the class of
    their cluster (Hungarian algorithm; Kuhn, 1955). The labels of test play no part.

    Args:
        reading: as it is, not standardised, so that dimensions count by how much they vary.
        seed: of k-means and of the shuffles.

    Raises:
        ValueError: train or test has no labels.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import normalized_mutual_info_score

    rows, tested = codes.labelled, codes.tested
    if not len(rows) or not len(tested):
        raise ValueError(f"clusters for {len(rows)} labelled sentences of train and {len(tested)} of test")
    size = min(len(codes.classes), reading.train.shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        found = KMeans(size, n_init=STARTS, random_state=seed_of_numpy(seed)).fit(reading.train)
    together = np.zeros((size, len(codes.classes)), dtype=int)
    np.add.at(together, (found.labels_[rows], codes.train[rows]), 1)
    assigned = np.full(size, -1)
    clusters, classes = linear_sum_assignment(together, maximize=True)
    assigned[clusters] = classes
    given, labels = found.predict(reading.test)[tested], codes.test[tested]
    rng = np.random.default_rng(seed)
    by_chance = [float(normalized_mutual_info_score(rng.permutation(labels), given)) for _ in range(SHUFFLES)]
    return Clusters(
        clusters=len(np.unique(found.labels_)),
        nmi=float(normalized_mutual_info_score(labels, given)),
        nmi_by_chance=float(np.mean(by_chance)),
        accuracy=mean_estimate(assigned[given] == labels),
    )
