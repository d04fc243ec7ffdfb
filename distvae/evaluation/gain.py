"""What one model gains over another in NLL, by sentence length and by position: whether z pays, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distvae.config.schema import EvaluationConfig
from distvae.data.batches import Batch
from distvae.data.sentences import Sentences
from distvae.distributed.ranks import Ranks
from distvae.evaluation import scoring
from distvae.evaluation.scores import Estimate, mean_estimate
from distvae.model.decoder import Decoder
from distvae.model.draws import sentence_noise
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE

# Powers β of the proposals p(z)^(1−β) q(z|x)^β, from the prior, which is p(z|x₍≤t₎) before the first token, to the
# posterior, which is close to it after the last.
BRIDGE = (0.0, 0.25, 0.5, 0.75, 1.0)

# Groups of sentences by length, of about the same size.
GROUPS = 4


@dataclass(frozen=True)
class TokenScores:
    """NLL of each token, −log p(xₜ|x₍<t₎), in nats. Tokens are words and ``</s>``.

    Attributes:
        lengths: tokens of each sentence, [N].
        nll: [N, T], 0 after the end of a sentence.
        effective: effective samples of p(x₍≤t₎), [N, T]. None: a language model, whose NLL is exact.
    """

    lengths: np.ndarray
    nll: np.ndarray
    effective: np.ndarray | None


@dataclass(frozen=True)
class Gained:
    """NLL of the same sentences, or of the same tokens, under two models, in nats each.

    Attributes:
        first, last: the lengths of these sentences, in tokens, or the positions of these tokens, from 1.
        count: how many sentences or tokens.
        baseline: NLL of the baseline.
        nll: NLL of the model.
        gain: baseline − model, paired.
    """

    first: int
    last: int
    count: int
    baseline: Estimate
    nll: Estimate
    gain: Estimate

    @classmethod
    def of(cls, first: int, last: int, baseline: np.ndarray, nll: np.ndarray) -> Gained:
        """Compare the NLL of each of at least one sentence or token: [n], [n]."""
        gain = mean_estimate(baseline - nll)
        return cls(first, last, len(nll), mean_estimate(baseline), mean_estimate(nll), gain)


@dataclass(frozen=True)
class Gain:
    """What a model gains over a baseline.

    Attributes:
        sentences: all of them.
        lengths: groups of sentences by length.
        positions: the first tokens of all sentences, the second ones and so on; of those that have one.
        effective: effective samples by position, mean over sentences: of the model and of the baseline. None: exact.
    """

    sentences: Gained
    lengths: tuple[Gained, ...]
    positions: tuple[Gained, ...]
    effective: tuple[tuple[float, ...] | None, tuple[float, ...] | None]

    @classmethod
    def of(cls, model: TokenScores, baseline: TokenScores) -> Gain:
        """Compare two models by the tokens of the same sentences."""
        lengths, longest = model.lengths, int(model.lengths.max())
        sums = baseline.nll.sum(axis=1), model.nll.sum(axis=1)
        # Sentences of a length are not divided, so groups can differ in size, or be fewer.
        bounds = np.unique(np.quantile(lengths, np.arange(1, GROUPS + 1) / GROUPS, method="inverted_cdf"))
        group = np.searchsorted(bounds, lengths)
        members = [group == number for number in range(len(bounds))]
        having = [lengths > position for position in range(longest)]
        return cls(
            sentences=Gained.of(int(lengths.min()), longest, *sums),
            lengths=tuple(
                Gained.of(int(lengths[some].min()), int(lengths[some].max()), *(nll[some] for nll in sums))
                for some in members
            ),
            positions=tuple(
                Gained.of(position + 1, position + 1, *(each.nll[some, position] for each in (baseline, model)))
                for position, some in enumerate(having)
            ),
            effective=(_effective(model, having), _effective(baseline, having)),
        )


def _effective(scores: TokenScores, having: list[np.ndarray]) -> tuple[float, ...] | None:
    if (found := scores.effective) is None:
        return None
    return tuple(float(found[some, position].mean()) for position, some in enumerate(having))


def token_scores(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    ranks: Ranks,
    on_progress: Callable[[int], None] = lambda done: None,
) -> TokenScores:
    """Return the NLL of each token: exact for a language model, else importance weighted; see ``prefix_log_weights``.

    Args:
        settings: ``importance_samples`` and ``seed`` of the draws.
        on_progress: called with the number of sentences since the last call, equally often on every rank.

    Returns:
        The same on every rank: one collective.
    """
    lengths, samples = sentences.lengths - 1, settings.importance_samples
    longest, exact = int(lengths.max()), model.latent_size == 0

    def work(batch: Batch, numbers: np.ndarray) -> Tensor:
        tokens = batch.tokens.to(ranks.device)
        posterior = model.encoder(tokens, batch.lengths.to(ranks.device))
        if exact:
            columns = [model.decoder.token_losses(tokens, posterior.mean)]
        else:
            noise = sentence_noise(numbers, (samples, model.latent_size), ranks.device, settings.seed, "positions")
            bf16 = scoring.decodes_in_bf16(settings, ranks.device)
            columns = [
                *token_nll(prefix_log_weights(model.decoder, tokens, posterior, noise, settings.memory_mb, bf16))
            ]
        padding = (0, longest - tokens.shape[1] + 1)
        inside = batch.lengths[:, None] - 1 > torch.arange(longest)
        return torch.cat([F.pad(each.cpu(), padding) * inside for each in columns], dim=1)

    together = settings.batch_size if exact else scoring.weighted_together(settings, model.latent_size, samples)
    with scoring.exact_inference(model):
        rows = scoring.of_each(
            sentences, together, ranks, model.decoder.pad, longest * (2 - exact), work, on_progress
        ).numpy()
    return TokenScores(lengths, rows[:, :longest], None if exact else rows[:, longest:])


def prefix_log_weights(
    decoder: Decoder, tokens: Tensor, posterior: Posterior, noise: Tensor, memory_mb: int, bf16: bool = False
) -> Tensor:
    """Return log p(x₍≤t₎|z) p(z) / r(z) for t = 1 … T: the mean weight of K draws z ~ r estimates p(x₍≤t₎).

    Draws from q(z|x) alone estimate the beginning of a sentence badly, because q knows all of it. Here r mixes
    Gaussians between prior and posterior (``BRIDGE``), and each draw is weighed by the whole mixture (the balance
    heuristic; Veach & Guibas, 1995, section 3). The estimate has no bias for any t.

    Args:
        tokens: [b, L], T = L − 1.
        posterior: of these sentences, each [b, m].
        noise: ε, [b, K, m]; draw k is from Gaussian k mod 5.
        memory_mb: limit on the hidden states of a chunk, in MiB; changes no value.
        bf16: decode under autocast; losses stay float32 and weights float64.

    Returns:
        [b, K, T], float64.
    """
    samples = noise.shape[1]
    power = torch.tensor(BRIDGE, dtype=torch.float64, device=noise.device)[:, None]
    precision = torch.exp(-posterior.log_variance.double())[:, None]
    mean = power * posterior.mean.double()[:, None] * precision
    precision = 1 - power + power * precision  # [b, 5, m]
    mean = mean / precision
    drawn = torch.arange(samples, device=noise.device) % len(BRIDGE)
    z = mean[:, drawn] + noise.double() / precision[:, drawn].sqrt()
    z = z.to(posterior.mean.dtype).double()  # what is decoded
    shares = torch.bincount(drawn, minlength=len(BRIDGE)).double() / samples
    # All densities lack the constant of N(0, I).
    densities = [
        0.5 * (each.log() - each * (z - center).square()).sum(dim=2)
        for each, center in zip(precision[:, :, None].unbind(1), mean[:, :, None].unbind(1), strict=True)
    ]
    log_r = torch.logsumexp(torch.stack(densities) + shares.log()[:, None, None], dim=0)
    losses = [*scoring.token_losses(decoder, tokens, z.to(posterior.mean.dtype), memory_mb, bf16)]
    log_likelihood = -torch.cat(losses).double().cumsum(dim=1).view(*noise.shape[:2], -1)
    return log_likelihood + (-0.5 * z.square().sum(dim=2) - log_r)[:, :, None]


def token_nll(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return −log p(xₜ|x₍<t₎) and the effective samples of p(x₍≤t₎), 1 / Σ w̃²: [b, K, T] → [b, T], [b, T].

    The NLL adds up to that of the sentence.
    """
    nll, effective = scoring.importance_weighted_nll(log_weights)
    return nll.diff(dim=1, prepend=torch.zeros_like(nll[:, :1])), effective
