"""The same model, training step and importance-weighted NLL in textbook PyTorch.

Like published implementations of this model it uses float32 throughout, all logits at once, an optimizer for each half,
logs values from the device at each step, and scores sentences one at a time. It is the baseline of the benchmarks and
the reference of the tests.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distvae.config.schema import ModelConfig


class TextbookVAE(nn.Module):
    def __init__(self, sizes: ModelConfig, vocabulary_size: int, pad: int):
        super().__init__()
        embedding, hidden, latent = sizes.embedding_size, sizes.hidden_size, sizes.latent_size
        self.pad, self.dropout = pad, sizes.dropout
        self.encoder_embedding = nn.Embedding(vocabulary_size, embedding)
        self.encoder_lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.posterior = nn.Linear(hidden, 2 * latent)
        self.decoder_embedding = nn.Embedding(vocabulary_size, embedding)
        self.latent_to_cell = nn.Linear(latent, hidden, bias=False)
        self.decoder_lstm = nn.LSTM(embedding + latent, hidden, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary_size, bias=False)
        for name, weight in self.named_parameters():
            bound = sizes.embedding_init_range if "embedding" in name else sizes.init_range
            nn.init.uniform_(weight, -bound, bound)

    def encode(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.encoder_lstm(self.encoder_embedding(tokens))
        last = hidden[torch.arange(len(tokens)), lengths - 1]
        mean, log_variance = self.posterior(last).chunk(2, dim=1)
        return mean, log_variance

    def reconstruction(self, tokens: Tensor, z: Tensor) -> Tensor:
        embedded = F.dropout(self.decoder_embedding(tokens[:, :-1]), self.dropout, self.training)
        cell = self.latent_to_cell(z)[None]
        z_beside = z[:, None].expand(-1, embedded.shape[1], -1)
        hidden, _ = self.decoder_lstm(torch.cat([embedded, z_beside], dim=2), (cell.tanh(), cell))
        logits = self.output(F.dropout(hidden, self.dropout, self.training))
        targets = tokens[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=self.pad, reduction="none")
        return losses.view(targets.shape).sum(dim=1)


class TextbookTraining:
    """A training step with two optimizers: SGD for the encoder and for the decoder."""

    def __init__(self, model: TextbookVAE, learning_rate: float, clip_norm: float):
        self.model, self.clip_norm = model, clip_norm
        encoder = [*model.encoder_embedding.parameters(), *model.encoder_lstm.parameters()]
        encoder += model.posterior.parameters()
        decoder = [*model.decoder_embedding.parameters(), *model.decoder_lstm.parameters()]
        decoder += [*model.latent_to_cell.parameters(), *model.output.parameters()]
        self.optimizers = [torch.optim.SGD(part, learning_rate) for part in (encoder, decoder)]

    def step(self, tokens: Tensor, lengths: Tensor, kl_weight: float) -> tuple[float, float]:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        mean, log_variance = self.model.encode(tokens, lengths)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        re = self.model.reconstruction(tokens, z)
        kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1)
        loss = (re + kl_weight * kl).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return re.sum().item(), kl.sum().item()


@torch.no_grad()
def importance_weighted_nll(model: TextbookVAE, sentence: Tensor, samples: int, chunk: int = 100) -> float:
    """Return the NLL of one sentence, [L], in nats."""
    tokens = sentence[None]
    mean, log_variance = model.encode(tokens, torch.tensor([len(sentence)], device=tokens.device))
    weights = []
    for _ in range(samples // chunk):
        noise = torch.randn(chunk, mean.shape[1], device=mean.device)
        z = mean + torch.exp(0.5 * log_variance) * noise
        log_likelihood = -model.reconstruction(tokens.expand(chunk, -1), z)
        log_prior = -0.5 * (z**2).sum(dim=1)
        log_posterior = -0.5 * (noise**2 + log_variance).sum(dim=1)
        weights.append(log_likelihood + log_prior - log_posterior)
    return math.log(samples) - torch.logsumexp(torch.cat(weights), dim=0).item()
