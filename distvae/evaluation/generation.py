"""Generate sentences: prior samples, reconstructions, interpolations; by greedy, sampled or beam-search decoding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import torch
from torch import Tensor

from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.decoding import Decoding
from distvae.model.draws import generator, sentence_noise
from distvae.model.vae import TextVAE

# Next-token scores decoded at a time, in several float64 copies, so that memory does not grow with the number of
# sentences.
SCORED_TOGETHER = 2**22


def prior_draws(model: TextVAE, count: int, seed: int) -> Tensor:
    """Draw z ~ N(0, I): [count, m]. A larger count begins with the draws of a smaller one."""
    return sentence_noise(range(count), (model.latent_size,), _device(model), seed, "prior")


def interpolation(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Return points on the line between two z, both included: [m], [m] → [steps, m] (paper, Table 2)."""
    share = torch.linspace(0, 1, steps, device=start.device).unsqueeze(1)
    return torch.lerp(start.expand(steps, -1), end.expand(steps, -1), share)


def decode(
    model: TextVAE,
    z: Tensor,
    vocabulary: Vocabulary,
    decoding: Decoding,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Decode a sentence for each z: [b, m] → b texts. The arguments are those of ``decode_ids``."""
    return [vocabulary.text(row) for row in decode_ids(model, z, vocabulary, decoding, on_progress)]


@torch.inference_mode()
def decode_ids(
    model: TextVAE,
    z: Tensor,
    vocabulary: Vocabulary,
    decoding: Decoding,
    on_progress: Callable[[int], None] = lambda done: None,
    first: int = 0,
) -> list[list[int]]:
    """Decode the ids of a sentence for each z: [b, m] → b lists. The model must be in evaluation mode.

    Args:
        on_progress: called with the number of sentences decoded since the last call.
        first: number of the first z, on which the draws of ``sample`` depend.

    Returns:
        ids of ``w₁ … wₙ``, without ``</s>``.
    """
    beams = decoding.beam_size if decoding.method == "beam" else 1
    together = max(1, SCORED_TOGETHER // (beams * len(vocabulary)))
    sentences: list[list[int]] = []
    for start in range(0, len(z), together):
        some = z[start : start + together].to(_device(model))
        if decoding.method == "beam":
            ids = _beam(model, some, vocabulary, decoding)
        else:
            ids = _stepwise(model, some, vocabulary, decoding, first + start)
        sentences += [list(takewhile(lambda token: token != vocabulary.eos, row)) for row in ids]
        on_progress(len(ids))
    return sentences


def _stepwise(model: TextVAE, z: Tensor, vocabulary: Vocabulary, decoding: Decoding, first: int) -> list[list[int]]:
    """Decode one token at a time from the state of the previous step. ``first``: number of the first sentence."""
    draws = _draws(range(first, first + len(z)), decoding, z.device) if decoding.method == "sample" else None
    state = model.decoder.initial_state(z)
    tokens = torch.full((len(z), 1), vocabulary.bos, device=z.device)
    ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    sentences = []
    for step in range(decoding.max_tokens):
        logits, state = model.decoder(tokens, z, state)
        scores = _allowed(logits[:, -1], vocabulary)
        if draws is None:
            tokens = scores.argmax(dim=-1, keepdim=True)
        else:
            tokens = _drawn(_truncated(scores, decoding), draws[:, step])
        sentences.append(tokens)
        ended |= tokens.squeeze(1) == vocabulary.eos
        if ended.all():
            break
    return torch.cat(sentences, dim=1).tolist()


def _draws(numbers: range, decoding: Decoding, device: torch.device) -> Tensor:
    """Return uniform draws [b, max_tokens] that depend only on each sentence's number, not on the batch."""
    rows = [generator(device, decoding.seed, "decode", i) for i in numbers]
    return torch.stack([torch.rand(decoding.max_tokens, generator=row, device=device) for row in rows])


def _drawn(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the token at a uniform draw in [0, 1) of the cumulative distribution: [b, V], [b] → [b, 1]."""
    steps = probabilities.double().cumsum(dim=-1)
    return torch.searchsorted(steps, draws.double().unsqueeze(1) * steps[:, -1:], right=True)


def _truncated(scores: Tensor, decoding: Decoding) -> Tensor:
    """Return probabilities [b, V] that are 0 outside top-k and top-p (Holtzman et al., 2020)."""
    scores = scores.double()
    tempered = (scores - scores.amax(dim=-1, keepdim=True)) / decoding.temperature
    probabilities, order = tempered.softmax(dim=-1).sort(dim=-1, descending=True)
    if decoding.top_k is not None:
        probabilities[:, decoding.top_k :] = 0
    if decoding.top_p is not None:
        total = probabilities.sum(dim=-1, keepdim=True)
        before = (probabilities / total).cumsum(dim=-1) - probabilities / total
        probabilities[before >= decoding.top_p] = 0
    return torch.zeros_like(probabilities).scatter(1, order, probabilities)


def _beam(model: TextVAE, z: Tensor, vocabulary: Vocabulary, decoding: Decoding) -> list[list[int]]:
    """Return the best sentences found by beam search, by log p(x|z) without length normalisation."""
    size, count = decoding.beam_size, len(z)
    z = z.repeat_interleave(size, dim=0)
    state = model.decoder.initial_state(z)
    tokens = torch.full((count * size, 1), vocabulary.bos, device=z.device)
    # All beams start equal: only the first of each sentence counts, or all would be the same.
    scores = torch.full((count, size), -torch.inf, device=z.device)
    scores[:, 0] = 0
    ended = torch.zeros(count, size, dtype=torch.bool, device=z.device)
    first = torch.arange(count, device=z.device).unsqueeze(1) * size
    for _ in range(decoding.max_tokens):
        logits, state = model.decoder(tokens[:, -1:], z, state)
        steps = _allowed(logits[:, -1].float(), vocabulary).log_softmax(dim=-1).view(count, size, -1)
        # A finished sentence only repeats `</s>`, at no cost.
        steps[ended] = -torch.inf
        steps[..., vocabulary.eos].masked_fill_(ended, 0)
        scores, choice = (scores.unsqueeze(2) + steps).flatten(1).topk(size, dim=1)
        parent = (first + choice // steps.shape[2]).flatten()
        token = choice % steps.shape[2]
        tokens = torch.cat([tokens[parent], token.view(-1, 1)], dim=1)
        state = tuple(part[:, parent] for part in state)
        ended = ended.flatten()[parent].view(count, size) | (token == vocabulary.eos)
        # No other beam can become the best, because scores never rise.
        if ended[:, 0].all():
            break
    return tokens.view(count, size, -1)[:, 0, 1:].tolist()


def _allowed(scores: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Rule out padding and ``<s>``, which no sentence contains."""
    scores = scores.clone()
    scores[:, [vocabulary.pad, vocabulary.bos]] = -torch.inf
    return scores


def _device(model: TextVAE) -> torch.device:
    return model.decoder.output.weight.device
