"""Encode sentences to their posteriors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from distvae.data.batches import collate, share
from distvae.data.plans import evaluation_plan
from distvae.data.sentences import Sentences
from distvae.distributed.ranks import OneRank, Ranks
from distvae.evaluation.scoring import exact_inference
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE

# Sentences encoded at a time on a rank, and sentences of a chunk.
ENCODED_TOGETHER, CHUNK = 256, 2**14


def posteriors(
    model: TextVAE,
    sentences: Sentences,
    ranks: Ranks,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Posterior]:
    """Yield q(z|x) of consecutive chunks of sentences, on all ranks together: one collective per chunk.

    Args:
        on_progress: called with the number of sentences encoded since the last call, equally often on every rank.

    Yields:
        [n, m] each, in CPU memory, the same on every rank.
    """
    size, dtype = model.latent_size, model.decoder.output.weight.dtype
    for first in range(0, len(sentences), CHUNK):
        lengths = sentences.lengths[first : first + CHUNK]
        rows = torch.zeros(len(lengths), 2 * size, dtype=dtype)
        with exact_inference(model):
            for numbers in evaluation_plan(lengths, ENCODED_TOGETHER * ranks.world_size):
                mine = share(len(numbers), ranks.rank, ranks.world_size)
                if mine.stop > mine.start:
                    batch = collate(sentences, first + numbers, mine, model.decoder.pad)
                    found = model.encoder(batch.tokens.to(ranks.device), batch.lengths.to(ranks.device))
                    rows[numbers[mine]] = torch.cat(found, dim=1).cpu()
                on_progress(len(numbers))
            mean, log_variance = ranks.sum(rows.to(ranks.device)).cpu().chunk(2, dim=1)
        yield Posterior(mean.clone(), log_variance.clone())


def all_posteriors(
    model: TextVAE, sentences: Sentences, ranks: Ranks, on_progress: Callable[[int], None] = lambda done: None
) -> Posterior:
    """Return q(z|x) of at least one sentence, on all ranks together: [n, m] each. See ``posteriors``."""
    return Posterior(*map(torch.cat, zip(*posteriors(model, sentences, ranks, on_progress), strict=True)))


def encode(
    model: TextVAE, ids: Sequence[Sequence[int]], on_progress: Callable[[int], None] = lambda done: None
) -> Posterior:
    """Return q(z|x) of each sentence of ids: [b, m] each, in CPU memory."""
    device = model.decoder.output.weight.device
    if not ids:
        return Posterior(*torch.zeros(2, 0, model.latent_size))
    return all_posteriors(model, Sentences.of(ids), OneRank(device), on_progress)
