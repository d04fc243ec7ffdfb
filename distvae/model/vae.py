"""The LSTM variational autoencoder of sentences (paper, sections 4 and 6.2; Li et al., 2019).

Sentences are ids [b, L] of ``<s> w₁ … wₙ </s>``, padded on the right. It knows nothing of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distvae.config.schema import Config, ModelConfig
from distvae.model.cross_entropy import linear_cross_entropy

State = tuple[Tensor, Tensor]  # h and c of an LSTM, each [1, b, H]


@dataclass(frozen=True)
class Noise:
    """The draws of one training forward. A mask is True where a value is kept; None drops nothing."""

    latent: Tensor  # [b, m], standard normal
    keep_words: Tensor | None = None  # [b, T]
    keep_embeddings: Tensor | None = None  # [b, T, E]
    keep_outputs: Tensor | None = None  # [b, T, H]

    def rows(self, rows: slice) -> Noise:
        """That of some of the sentences."""
        return Noise(*(None if part is None else part[rows] for part in vars(self).values()))


class Posterior(NamedTuple):
    """q(z|x) = N(mean, diag exp log_variance), each [b, m], float32 or better."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """z = μ + σ ⊙ ε."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise


def _run(lstm: nn.LSTM, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """The LSTM's outputs and last state, in the precision around it; on a GPU in its weights' while it trains.

    Under autocast cuDNN runs an LSTM in float16, whatever autocast's precision is. No loss is scaled for that, and the
    gradients of a young encoder are below its range.
    """
    if inputs.is_cuda and lstm.training:
        dtype = lstm.weight_hh_l0.dtype
        with torch.autocast("cuda", enabled=False):
            return lstm(inputs.to(dtype), None if state is None else (state[0].to(dtype), state[1].to(dtype)))
    return lstm(inputs, state)


class Encoder(nn.Module):
    """LSTM over ``<s> w₁ … wₙ </s>``; its last hidden state gives q(z|x)."""

    def __init__(self, sizes: ModelConfig, vocabulary_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, sizes.embedding_size)
        self.lstm = nn.LSTM(sizes.embedding_size, sizes.hidden_size, batch_first=True)
        self.posterior = nn.Linear(sizes.hidden_size, 2 * sizes.latent_size)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Posterior:
        """tokens [b, L], lengths [b] → q(z|x)."""
        hidden, _ = _run(self.lstm, self.embedding(tokens))
        # Padding stands on the right, so it reaches no state before a sentence's end.
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        with torch.autocast(tokens.device.type, enabled=False):
            mean, log_variance = self.posterior(last.to(self.posterior.weight.dtype)).chunk(2, dim=-1)
        return Posterior(mean, log_variance)


class Output(nn.Linear):
    """The decoder's last layer: logits, or with targets their cross entropy, by ``fused`` without keeping the logits.

    A module of its own for both: engines that spread weights bring them together where a module is entered.
    """

    def __init__(self, hidden_size: int, vocabulary_size: int, pad: int, fused: bool):
        super().__init__(hidden_size, vocabulary_size, bias=False)
        self.pad, self.fused = pad, fused

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """hidden [b, T, H] → logits [b, T, V]; with targets [b, T] → nats [b, T], 0 where a target is ``pad``."""
        if targets is None:
            return super().forward(hidden)
        hidden, wanted = hidden.flatten(0, 1), targets.flatten()
        if self.fused:
            losses = linear_cross_entropy(hidden, self.weight, wanted, self.pad)
        else:
            losses = F.cross_entropy(super().forward(hidden), wanted, ignore_index=self.pad, reduction="none")
        return losses.view(targets.shape)


class Decoder(nn.Module):
    """p(x|z): an LSTM with c₀ = W z and h₀ = tanh c₀, z beside every input embedding, and an output without bias."""

    def __init__(self, sizes: ModelConfig, vocabulary_size: int, pad: int, unknown: int, fused_output: bool):
        super().__init__()
        self.pad, self.unknown = pad, unknown
        self.dropout = sizes.dropout
        self.embedding = nn.Embedding(vocabulary_size, sizes.embedding_size)
        self.latent_to_cell = nn.Linear(sizes.latent_size, sizes.hidden_size, bias=False)
        self.lstm = nn.LSTM(sizes.embedding_size + sizes.latent_size, sizes.hidden_size, batch_first=True)
        self.output = Output(sizes.hidden_size, vocabulary_size, pad, fused_output)

    def initial_state(self, z: Tensor) -> State:
        """z [b, m] → the LSTM's first state."""
        cell = self.latent_to_cell(z).unsqueeze(0)
        return torch.tanh(cell), cell

    def forward(self, inputs: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of each next token.

        Args:
            inputs: [b, T], the tokens so far (from ``state`` on).
            z: [b, m].
            state: ``initial_state(z)``, or what an earlier call returned.

        Returns:
            logits [b, T, V] and the state after the last input.
        """
        hidden, state = self._hidden(inputs, z, state, None)
        return self.output(hidden), state

    def reconstruction(self, tokens: Tensor, z: Tensor, noise: Noise | None = None) -> Tensor:
        """−log p(x|z) of each sentence in nats, ``</s>`` counted and ``<s>`` not: tokens [b, L], z [b, m] → [b].

        Noise holds the dropout masks of a training step; without it nothing is dropped.
        """
        hidden, _ = self._hidden(tokens[:, :-1], z, self.initial_state(z), noise)
        return self.output(hidden, tokens[:, 1:]).sum(dim=1)

    def _hidden(self, inputs: Tensor, z: Tensor, state: State, noise: Noise | None) -> tuple[Tensor, State]:
        steps = inputs.shape[1]
        if noise is not None and noise.keep_words is not None:
            keep = noise.keep_words[:, :steps].clone()
            keep[:, 0] = True  # `<s>` is no word
            inputs = torch.where(keep, inputs, self.unknown)
        embedded = self._dropped(self.embedding(inputs), None if noise is None else noise.keep_embeddings)
        inputs = torch.cat([embedded, z.unsqueeze(1).expand(-1, steps, -1)], dim=-1)
        hidden, state = _run(self.lstm, inputs, state)
        return self._dropped(hidden, None if noise is None else noise.keep_outputs), state

    def _dropped(self, values: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            return values
        return values * (keep[:, : values.shape[1]].to(values.dtype) / (1 - self.dropout))


class TextVAE(nn.Module):
    """Encoder and decoder of one sentence variational autoencoder.

    Args:
        sizes: E, H, m and the dropout rate.
        vocabulary_size: V.
        pad: id whose positions count nothing.
        unknown: id that stands in for words that word dropout takes away.
        fused_output: compute the losses by ``linear_cross_entropy``.
    """

    def __init__(self, sizes: ModelConfig, vocabulary_size: int, pad: int, unknown: int, fused_output: bool = True):
        super().__init__()
        self.latent_size = sizes.latent_size
        self.encoder = Encoder(sizes, vocabulary_size)
        self.decoder = Decoder(sizes, vocabulary_size, pad, unknown, fused_output)

    def forward(
        self, tokens: Tensor, lengths: Tensor, noise: Noise | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """One training forward: tokens [b, L], lengths [b] → RE [b] in nats, posterior mean and log σ² [b, m].

        Without noise there is no z, and RE is None.
        """
        posterior = self.encoder(tokens, lengths)
        reconstruction = None
        if noise is not None:
            reconstruction = self.decoder.reconstruction(tokens, posterior.sample(noise.latent), noise)
        return reconstruction, posterior.mean, posterior.log_variance


def model_of(config: Config, vocabulary_size: int, pad: int, unknown: int) -> TextVAE:
    """The model that a run's config asks for, before its weights are drawn or loaded."""
    return TextVAE(config.model, vocabulary_size, pad, unknown, fused_output=config.speed.output_layer == "fused")


def initialise(module: nn.Module, sizes: ModelConfig, generator: torch.Generator) -> None:
    """Draw every weight uniformly, embeddings in a range of their own (paper, section 6.2)."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            bound = sizes.embedding_init_range if "embedding" in name else sizes.init_range
            draws = torch.empty(parameter.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            parameter.copy_(draws)
