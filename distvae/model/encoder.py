"""The LSTM encoder (paper, sections 4 and 6.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distvae.config.schema import ModelConfig
from distvae.model import lstm
from distvae.model.posterior import Posterior


class Encoder(nn.Module):
    """LSTM over ``<s> w₁ … wₙ </s>`` whose last hidden state parametrises q(z|x).

    Args:
        sizes: E, H and m.
        vocabulary_size: V.
    """

    def __init__(self, sizes: ModelConfig, vocabulary_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, sizes.embedding_size)
        self.lstm = nn.LSTM(sizes.embedding_size, sizes.hidden_size, batch_first=True)
        self.posterior = nn.Linear(sizes.hidden_size, 2 * sizes.latent_size)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Posterior:
        """Return q(z|x) for tokens [b, L], padded on the right, and lengths [b]."""
        hidden, _ = lstm.run(self.lstm, self.embedding(tokens))
        # Right padding does not affect the states before the end of a sentence.
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        with torch.autocast(tokens.device.type, enabled=False):
            mean, log_variance = self.posterior(last.to(self.posterior.weight.dtype)).chunk(2, dim=-1)
        return Posterior(mean, log_variance)


class NoEncoder(nn.Module):
    """The encoder of a language model: z has no dimensions, and there is nothing to train."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Posterior:
        """Return a posterior of no dimensions for tokens [b, L]: [b, 0] each."""
        nothing = torch.zeros(len(tokens), 0, device=tokens.device)
        return Posterior(nothing, nothing)
