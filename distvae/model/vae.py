"""The variational autoencoder of sentences: encoder, reparametrised sample, decoder (paper, section 4).

Sentences are ids [b, L] of ``<s> w₁ … wₙ </s>``, padded on the right. Nothing here depends on training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distvae.config.schema import Config, ModelConfig
from distvae.data.batches import share
from distvae.model.decoder import Decoder
from distvae.model.draws import Noise
from distvae.model.encoder import Encoder, NoEncoder


class TextVAE(nn.Module):
    """An encoder and a decoder. With m = 0 the decoder alone, which is an LSTM language model.

    Args:
        sizes: E, H, m and the dropout rate.
        vocabulary_size: V.
        pad: id that is not scored.
        unknown: id that replaces words removed by word dropout.
        fused_output: compute losses by ``linear_cross_entropy``.
    """

    def __init__(self, sizes: ModelConfig, vocabulary_size: int, pad: int, unknown: int, fused_output: bool = True):
        super().__init__()
        self.latent_size = sizes.latent_size
        self.encoder = Encoder(sizes, vocabulary_size) if sizes.latent_size else NoEncoder()
        self.decoder = Decoder(sizes, vocabulary_size, pad, unknown, fused_output)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        noise: Noise | None = None,
        count: int | None = None,
        micro_batches: int = 1,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Run a training forward.

        Args:
            tokens: [b, L].
            lengths: [b].
            noise: the draws of this step; None runs the encoder only.
            count: number of sentences that count, the first ones. None: all.
            micro_batches: with several, the backward computes one after the other again, so that the activations of one
                are in memory at a time.

        Returns:
            the reconstruction error [b] in nats (None without noise), and mean and log σ² of the posterior, [b, m].
        """
        micro_batches = min(micro_batches, len(tokens))
        parts = [share(len(tokens), part, micro_batches) for part in range(micro_batches)]
        outputs = _in_parts(self.encoder.outputs, parts, tokens, lengths)
        posterior = self.encoder.posterior_of(outputs, count, None if noise is None else noise.keep_variances)
        reconstruction = None
        if noise is not None:
            z = posterior.sample(noise.latent)
            reconstruction = _in_parts(self.decoder.reconstruction, parts, tokens, z, noise)
        return reconstruction, posterior.mean, posterior.log_variance


def _in_parts(compute: Callable[..., Tensor], parts: Sequence[slice], *inputs: Tensor | Noise) -> Tensor:
    """Return ``compute(*inputs)``, if there are several parts of its rows from one part after the other."""
    if len(parts) == 1:
        return compute(*inputs)
    results: list[Tensor] = []
    for rows in parts:
        own = [value.rows(rows) if isinstance(value, Noise) else value[rows] for value in inputs]
        results.append(checkpoint(compute, *own, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(results)


def model_of(config: Config, vocabulary_size: int, pad: int, unknown: int) -> TextVAE:
    """Build the model of a config, before its weights are drawn or loaded."""
    return TextVAE(config.model, vocabulary_size, pad, unknown, fused_output=config.speed.output_layer == "fused")


def initialise(module: nn.Module, sizes: ModelConfig, generator: torch.Generator) -> None:
    """Draw all weights uniformly; embeddings have a range of their own (paper, section 6.2).

    A batch normalisation keeps the values that it was built with.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "normalise." in name:
                continue
            bound = sizes.embedding_init_range if "embedding" in name else sizes.init_range
            draws = torch.empty(parameter.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            parameter.copy_(draws)
