"""The LSTM encoder (paper, sections 4 and 6.2), and how it pools its hidden states (Long et al., 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distvae.config.schema import ModelConfig, Pooling
from distvae.methods.posteriors import DUPosterior, GaussianPosterior
from distvae.model import lstm
from distvae.model.batch_norm import BatchNorm
from distvae.model.posterior import Posterior


class Encoder(nn.Module):
    """LSTM over ``<s> w₁ … wₙ </s>`` whose last or pooled hidden state parametrises q(z|x).

    Args:
        sizes: E, H, m and the pooling.
        vocabulary_size: V.
    """

    def __init__(self, sizes: ModelConfig, vocabulary_size: int):
        super().__init__()
        self._pooling = sizes.pooling
        self.embedding = nn.Embedding(vocabulary_size, sizes.embedding_size)
        self.lstm = nn.LSTM(sizes.embedding_size, sizes.hidden_size, batch_first=True)
        self.posterior = nn.Linear(sizes.hidden_size, 2 * sizes.latent_size)
        self.normalise: BatchNorm | None = None
        self._du: DUPosterior | None = sizes.posterior if isinstance(sizes.posterior, DUPosterior) else None
        if not isinstance(sizes.posterior, GaussianPosterior):
            self.normalise = BatchNorm(sizes.latent_size, sizes.posterior.mean_scale, learnt=self._du is not None)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Posterior:
        """Return q(z|x) for tokens [b, L], padded on the right, and lengths [b]."""
        return self.posterior_of(self.outputs(tokens, lengths))

    def outputs(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return what parametrises q(z|x), [b, 2m], for tokens [b, L] and lengths [b]."""
        hidden, _ = lstm.run(self.lstm, self.embedding(tokens))
        pooled = pool(hidden, lengths, self._pooling)
        with torch.autocast(tokens.device.type, enabled=False):
            outputs: Tensor = self.posterior(pooled.to(self.posterior.weight.dtype))
        return outputs

    def posterior_of(
        self, outputs: Tensor, count: int | None = None, keep_variances: Tensor | None = None
    ) -> Posterior:
        """Return q(z|x) for ``outputs`` [b, 2m].

        Args:
            count: number of sentences that count, the first ones. None: all.
            keep_variances: where a variance is not dropped, [b, m]. None: everywhere, without dropout.
        """
        mean, log_variance = outputs.chunk(2, dim=-1)
        if self.normalise is not None:
            mean = self.normalise(mean, count)
        if self._du is not None:
            log_variance = above_floor(log_variance, self._du, keep_variances)
        return Posterior(mean, log_variance)


def above_floor(log_variance: Tensor, options: DUPosterior, keep: Tensor | None) -> Tensor:
    """Return log(σ² + α/(2πe)) for log σ² [b, m] (DU-VAE, Shen et al., 2021).

    With a mask, σ² is 0 where ``keep`` is False and divided by 1 − p elsewhere, so that its expectation is unchanged.
    """
    if keep is not None:
        log_variance = log_variance.masked_fill(~keep, -torch.inf) - math.log1p(-options.variance_dropout)
    floor = math.log(options.variance_floor / (2 * math.pi * math.e))
    return torch.logaddexp(log_variance, torch.full_like(log_variance, floor))


def pool(hidden: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector for the hidden states of each sentence, [b, H], in float32 or better if it is their mean.

    ``mean`` and ``max`` are over time, in each dimension by itself (Long et al., 2019, «Preventing Posterior Collapse
    in Sequence VAEs with Pooling»). Here the states after ``<s>`` and ``</s>`` count like those after words, because
    ``last`` is the state after ``</s>``. Padding never counts.

    Args:
        hidden: of sentences padded on the right, [b, L, H]. Padding does not affect the states before it.
        lengths: [b].
    """
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    padding = (torch.arange(hidden.shape[1], device=hidden.device) >= lengths[:, None])[:, :, None]
    if pooling == "max":
        return hidden.masked_fill(padding, -torch.inf).amax(dim=1)
    total = hidden.masked_fill(padding, 0).sum(dim=1, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return total / lengths[:, None]


class NoEncoder(nn.Module):
    """The encoder of a language model: z has no dimensions, and there is nothing to train."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Posterior:
        """Return a posterior of no dimensions for tokens [b, L]: [b, 0] each."""
        return self.posterior_of(self.outputs(tokens, lengths))

    def outputs(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return torch.zeros(len(tokens), 0, device=tokens.device)

    def posterior_of(
        self, outputs: Tensor, count: int | None = None, keep_variances: Tensor | None = None
    ) -> Posterior:
        return Posterior(outputs, outputs)
