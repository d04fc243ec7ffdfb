"""A tiny model, and its equations written out by hand."""

import dataclasses

import torch
from torch import Tensor, nn

from distvae.config.schema import ModelConfig, Pooling
from distvae.model.draws import Noise, generator
from distvae.model.vae import TextVAE, initialise

PAD, BOS, EOS, UNKNOWN, A, B, C = range(7)

SIZES = ModelConfig(
    embedding_size=3, hidden_size=4, latent_size=2, dropout=0.25, init_range=0.9, embedding_init_range=1.5
)

POOLED = {pooling: dataclasses.replace(SIZES, pooling=pooling) for pooling in ("last", "mean", "max")}

# Without a latent variable: a language model.
NO_LATENT = dataclasses.replace(SIZES, latent_size=0)

SENTENCES = [[BOS, A, C, EOS], [BOS, EOS], [BOS, B, B, UNKNOWN, A, EOS], [BOS, C, EOS]]


def tiny_model(sizes: ModelConfig = SIZES, vocabulary_size: int = 7, fused_output: bool = True) -> TextVAE:
    """A float64 model whose weights are large enough that everything matters."""
    model = TextVAE(sizes, vocabulary_size, PAD, UNKNOWN, fused_output).double()
    initialise(model, sizes, generator("cpu", 1))
    return model


def padded(sentences: list[list[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    tokens = torch.full((len(sentences), width or int(lengths.max())), PAD)
    for row, sentence in zip(tokens, sentences, strict=True):
        row[: len(sentence)] = torch.tensor(sentence)
    return tokens, lengths


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("cpu", 2, *shape), dtype=torch.float64)


def coins(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator("cpu", 3, *shape)) < 0.6


def lstm_by_hand(lstm: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the LSTM's equations, with its gates in torch's order."""
    gates = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
    i, f, g, o = gates.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def posterior_by_hand(model: TextVAE, sentence: list[int], pooling: Pooling = "last") -> Tensor:
    encoder, states = model.encoder, []
    h = c = torch.zeros(SIZES.hidden_size, dtype=torch.float64)
    for token in sentence:
        h, c = lstm_by_hand(encoder.lstm, encoder.embedding.weight[token], h, c)
        states.append(h)
    pooled = {"last": h, "mean": sum(states) / len(states), "max": torch.stack(states).amax(dim=0)}[pooling]
    return encoder.posterior.weight @ pooled + encoder.posterior.bias


def reconstruction_by_hand(
    model: TextVAE,
    inputs: list[int],
    targets: list[int],
    z: Tensor,
    embedding_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
) -> Tensor:
    decoder = model.decoder
    c = decoder.latent_to_cell.weight @ z if len(z) else torch.zeros(decoder.lstm.hidden_size, dtype=z.dtype)
    h = torch.tanh(c)
    total = torch.zeros((), dtype=torch.float64)
    for t, (token, target) in enumerate(zip(inputs, targets, strict=True)):
        x = decoder.embedding.weight[token] * (1 if embedding_scale is None else embedding_scale[t])
        h, c = lstm_by_hand(decoder.lstm, torch.cat([x, z]), h, c)
        logits = decoder.output.weight @ (h * (1 if output_scale is None else output_scale[t]))
        total -= logits[target] - torch.logsumexp(logits, 0)
    return total


def losses_and_gradients(model: TextVAE, sentences: list[list[int]], noise: Noise, width: int | None = None):
    model.zero_grad()
    re, mean, log_variance = model(*padded(sentences, width), noise)
    (re.sum() + mean.square().sum() + log_variance.exp().sum()).backward()
    return (re, mean, log_variance), [parameter.grad.clone() for parameter in model.parameters()]
