"""MAUVE (Pillutla et al., 2021): how near a set of texts is to another in the features of a language model.

The features are those of a causal model of Hugging Face, by ``transformers``; scikit-learn quantises them. Both are
imported when they are first needed.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from distvae.model.draws import seed_of_numpy
from distvae.system.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# As in the authors' program: share of the variance that PCA keeps, texts of a cluster, starts and steps of k-means,
# points of the curve between the two, and the constant c by which divergences are scaled.
VARIANCE, CLUSTERED, STARTS, STEPS, POINTS, SCALE = 0.9, 10, 5, 500, 25, 5

# Texts of which features are computed at a time, and tokens that are read of a text, if the model takes as many.
TOGETHER, TOKENS = 16, 1024


def check_installed() -> None:
    """Check that transformers and scikit-learn are installed.

    Raises:
        UserError: one is not.
    """
    if not all(map(importlib.util.find_spec, ("transformers", "sklearn"))):
        raise UserError("--mauve needs transformers and scikit-learn: pip install 'distvae[mauve]'")


class Features:
    """Features of texts: the last layer of a language model at the last token.

    Args:
        model: name of a Hugging Face model, such as ``gpt2-large``, or a folder.
        device: where it computes.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """

    def __init__(self, model: str, device: torch.device):
        check_installed()
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
            # A pickle could execute code.
            found: PreTrainedModel = AutoModel.from_pretrained(model, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            wanted = "should be a language model of Hugging Face, such as gpt2-large, or a folder with its files"
            raise UserError(f"--mauve {model}: {wanted}: {reason(error)}") from error
        self._model, self._device = found.float().to(device).eval(), device
        self._longest = min(TOKENS, getattr(found.config, "max_position_embeddings", TOKENS))

    @torch.inference_mode()
    def of(self, texts: Sequence[str], on_progress: Callable[[int], None] = lambda done: None) -> np.ndarray:
        """Return the features of each text: [n, d], float32. An empty text is one end-of-text token.

        Args:
            on_progress: called with the number of texts read since the last call.
        """
        end = self._tokenizer.eos_token_id or 0
        ids = [self._tokenizer(text).input_ids[: self._longest] or [end] for text in texts]
        rows = []
        for first in range(0, len(ids), TOGETHER):
            some = [torch.tensor(row) for row in ids[first : first + TOGETHER]]
            lengths = torch.tensor([len(row) for row in some])
            tokens = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=end)
            mask = torch.arange(tokens.shape[1]) < lengths[:, None]
            states = self._model(
                input_ids=tokens.to(self._device), attention_mask=mask.long().to(self._device)
            ).last_hidden_state
            rows.append(states[torch.arange(len(some)), lengths - 1].cpu())
            on_progress(len(some))
        return torch.cat(rows).numpy()


def mauve(texts: np.ndarray, others: np.ndarray, seed: int) -> float:
    """Return the MAUVE of two sets of texts, 0 to 1. 1: each cluster has the same share of both.

    Args:
        texts, others: features, [n, d] and [k, d].
        seed: of k-means.
    """
    return of_histograms(*_histograms(texts, others, seed))


def of_histograms(p: np.ndarray, q: np.ndarray) -> float:
    """Return the area under the curve of exp(−c KL(q‖r)), exp(−c KL(p‖r)) over all mixtures r of p and q.

    Args:
        p, q: probabilities, [clusters] each.
    """
    shares = np.linspace(1e-6, 1 - 1e-6, POINTS)[:, None]
    mixtures = shares * p + (1 - shares) * q
    x, y = (np.exp(-SCALE * np.array([_divergence(part, r) for r in mixtures])) for part in (q, p))
    # The curve ends on the axes.
    return float(np.trapezoid([1, *y[::-1], 0], [0, *x[::-1], 1]))


def _divergence(p: np.ndarray, r: np.ndarray) -> float:
    """Return KL(p ‖ r) in nats, for r > 0 where p is."""
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / r[seen])).sum())


def _histograms(texts: np.ndarray, others: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each set in each cluster of both together: [clusters] each."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    together = normalize(np.vstack([texts, others]).astype(np.float64))
    clusters = max(2, round(min(len(texts), len(others)) / CLUSTERED))
    # On one thread, sums do not depend on chance.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        reduced = PCA(VARIANCE, svd_solver="full").fit_transform(together)
        means = KMeans(clusters, n_init=STARTS, max_iter=STEPS, random_state=seed_of_numpy(seed))
        labels = means.fit_predict(reduced)
    first, second = (
        np.bincount(part, minlength=clusters) / len(part) for part in (labels[: len(texts)], labels[len(texts) :])
    )
    return first, second
