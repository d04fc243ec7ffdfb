"""The LSTM decoder (paper, sections 4 and 6.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distvae.config.schema import ModelConfig
from distvae.model import lstm
from distvae.model.cross_entropy import linear_cross_entropy
from distvae.model.draws import Noise
from distvae.model.lstm import State


class Output(nn.Linear):
    """Return logits or, given targets, their cross entropy; ``fused`` does not keep the logits.

    One module does both because sharding engines gather weights when a module is entered.
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
    """p(x|z): an LSTM with c₀ = W z, h₀ = tanh c₀, z concatenated to every input embedding, and no output bias.

    With m = 0 it is p(x), from c₀ = h₀ = 0.

    Args:
        sizes: E, H, m and the dropout rate.
        vocabulary_size: V.
        pad: id that is not scored.
        unknown: id that replaces words removed by word dropout.
        fused_output: compute losses by ``linear_cross_entropy``.
    """

    def __init__(self, sizes: ModelConfig, vocabulary_size: int, pad: int, unknown: int, fused_output: bool):
        super().__init__()
        self.pad, self.unknown = pad, unknown
        self.dropout = sizes.dropout
        self.embedding = nn.Embedding(vocabulary_size, sizes.embedding_size)
        # A weight without values would have a gradient without values, which not every engine can send.
        self.latent_to_cell = nn.Linear(sizes.latent_size, sizes.hidden_size, bias=False) if sizes.latent_size else None
        self.lstm = nn.LSTM(sizes.embedding_size + sizes.latent_size, sizes.hidden_size, batch_first=True)
        self.output = Output(sizes.hidden_size, vocabulary_size, pad, fused_output)

    def initial_state(self, z: Tensor) -> State:
        """Return the first state of the LSTM for z [b, m]."""
        if self.latent_to_cell is None:
            cell = torch.zeros(1, len(z), self.lstm.hidden_size, dtype=self.output.weight.dtype, device=z.device)
        else:
            cell = self.latent_to_cell(z).unsqueeze(0)
        return torch.tanh(cell), cell

    def forward(self, inputs: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the logits of each next token.

        Args:
            inputs: [b, T], the tokens that follow those already in ``state``.
            z: [b, m].
            state: ``initial_state(z)``, or the state that an earlier call returned.

        Returns:
            logits [b, T, V] and the state after the last input.
        """
        hidden, state = self._hidden(inputs, z, state, None)
        return self.output(hidden), state

    def reconstruction(self, tokens: Tensor, z: Tensor, noise: Noise | None = None) -> Tensor:
        """Return −log p(x|z) of each sentence in nats, [b]: the sum of ``token_losses``, with the same arguments."""
        return self.token_losses(tokens, z, noise).sum(dim=1)

    def token_losses(self, tokens: Tensor, z: Tensor, noise: Noise | None = None) -> Tensor:
        """Return −log p(xₜ|x₍<t₎, z) of each token but ``<s>``, in nats: [b, L − 1], 0 for padding.

        Args:
            tokens: [b, L].
            z: [b, m].
            noise: dropout masks of a training step; None drops nothing.
        """
        hidden, _ = self._hidden(tokens[:, :-1], z, self.initial_state(z), noise)
        losses: Tensor = self.output(hidden, tokens[:, 1:])
        return losses

    def losses_of_draws(self, tokens: Tensor, z: Tensor, sentence: Tensor) -> Tensor:
        """Return ``token_losses`` of several draws of z for each sentence: [n, L − 1].

        In float32 on a CPU, products that they have in common are computed once. A GPU, and bfloat16, have faster ways
        for a whole LSTM.

        Args:
            tokens: [b, L].
            z: [n, m].
            sentence: of each z, [n].
        """
        if z.is_cuda or torch.is_autocast_enabled(z.device.type):
            return self.token_losses(tokens[sentence], z)
        words = self.embedding(tokens[:, :-1])
        hidden = lstm.run_draws(self.lstm, words, z, sentence, self.initial_state(z))
        losses: Tensor = self.output(hidden, tokens[sentence, 1:])
        return losses

    def _hidden(self, inputs: Tensor, z: Tensor, state: State, noise: Noise | None) -> tuple[Tensor, State]:
        steps = inputs.shape[1]
        if noise is not None and noise.keep_words is not None:
            keep = noise.keep_words[:, :steps].clone()
            keep[:, 0] = True  # never drop `<s>`
            inputs = torch.where(keep, inputs, self.unknown)
        embedded = self._dropped(self.embedding(inputs), None if noise is None else noise.keep_embeddings)
        inputs = torch.cat([embedded, z.unsqueeze(1).expand(-1, steps, -1)], dim=-1)
        hidden, state = lstm.run(self.lstm, inputs, state)
        return self._dropped(hidden, None if noise is None else noise.keep_outputs), state

    def _dropped(self, values: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            return values
        return values * (keep[:, : values.shape[1]].to(values.dtype) / (1 - self.dropout))
