"""Score a model on a split: −ELBO, NLL, perplexity, active units, mutual information.

The NLL of a VAE is importance weighted. That of a language model, which has no z to integrate over, is exact.

Every rank scores its share of each batch into its rows of a table. One sum over ranks completes the table, and all
statistics are computed from the whole table. Each sentence therefore counts exactly once for any number of ranks, and
its draws depend only on the seed and its number. All values are in nats, in float32 or better, whatever the precision
of the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distvae.config.schema import EvaluationConfig
from distvae.data import captions
from distvae.data.batches import Batch, collate, share
from distvae.data.plans import evaluation_plan
from distvae.data.sentences import Sentences
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.device import has_bf16
from distvae.distributed.ranks import Ranks
from distvae.evaluation.scores import Floor, Scores, SentenceScores, active_units, mean_estimate, perplexity
from distvae.methods.kl import kl_per_dimension
from distvae.model.decoder import Decoder
from distvae.model.draws import sentence_noise
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE

# Values of float64 in a chunk of draws of z times mixture components, some 100 MiB with temporaries.
_MIXTURE_VALUES = 2**22

# Most posteriors in the mixture that mutual information is found by.
MIXTURE = 2**15

# Maximum number of importance samples in a batch of a rank. They take seconds, because signals are handled between
# batches, and more are not faster.
_DRAWS = 2**13

# Copies of the importance samples that exist at a time.
_COPIES = 6


def score(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    ranks: Ranks,
    importance_samples: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[Scores, SentenceScores]:
    """Score every sentence once, on all ranks together.

    Args:
        model: not wrapped for training.
        importance_samples: K of the NLL; 0 leaves NLL and PPL out. A language model needs none: its NLL is its RE.
        on_progress: called with the number of sentences scored since the last call, equally often on every rank; with 0
            while the mutual information is computed.

    Returns:
        Scores of the split and of each sentence, the same on every rank.
    """
    exact = model.latent_size == 0
    if exact:
        importance_samples = 0
    with exact_inference(model):
        table = _score(model, sentences, settings, ranks, importance_samples, on_progress)
        information = mutual_information(table.posterior, table.z, ranks, lambda: on_progress(0))
    kl = kl_per_dimension(*table.posterior).numpy()
    each = SentenceScores(
        tokens=table.tokens,
        re=table.re,
        kl=kl.sum(axis=1),
        mutual_information=information,
        nll=table.re if exact else table.nll if importance_samples else None,
        characters=None if sentences.characters is None else sentences.characters.astype(np.float64),
    )
    scores = Scores.of(
        each,
        active_units=active_units(table.posterior.mean.numpy()),
        kl_per_dimension=tuple(kl.mean(axis=0).tolist()),
        seed=settings.seed,
        importance_samples=importance_samples,
        effective_samples=float(table.effective.mean()) if importance_samples else None,
        nll_excess=mean_estimate(table.nll - table.rounded_re - each.kl) if importance_samples else None,
    )
    return scores, each


def log_likelihoods(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    ranks: Ranks,
    on_progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Return log p(x) of each sentence in nats: the importance-weighted estimate, or the exact value without z.

    Args: those of ``score``; K is ``settings.importance_samples``.

    Returns:
        [N], float64, the same on every rank: minus the NLL of ``score``.
    """
    exact = model.latent_size == 0
    with exact_inference(model):
        samples = 0 if exact else settings.importance_samples
        table = _score(model, sentences, settings, ranks, samples, on_progress)
    return -(table.re if exact else table.nll)


@contextmanager
def exact_inference(model: TextVAE) -> Iterator[None]:
    """Set a model to evaluation without gradients, in float32 or better; afterwards to what it was."""
    training = model.training
    model.eval()
    try:
        # Some GPUs would otherwise run an LSTM's float32 with 10 bits of mantissa.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        model.train(training)


def floor(
    sentences: Sentences,
    vocabulary: Vocabulary,
    ranks: Ranks,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Floor:
    """Return the exact lower bound of NLL and PPL for the built-in captions. Ranks share the work: one collective."""
    nll = torch.zeros(len(sentences), dtype=torch.float64)
    mine = share(len(sentences), ranks.rank, ranks.world_size)
    for number in range(mine.start, mine.stop):
        nll[number] = -captions.log_probability(vocabulary.decode(sentences[number]))
        on_progress(ranks.world_size)
    found = ranks.sum(nll.to(ranks.device)).cpu().numpy()
    return Floor(mean_estimate(found), perplexity(found, sentences.lengths - 1))


def importance_log_weights(
    decoder: Decoder, tokens: Tensor, posterior: Posterior, noise: Tensor, memory_mb: int, bf16: bool = False
) -> Tensor:
    """Return log p(x|z) p(z) / q(z|x) of each draw z = μ + σ ⊙ ε.

    Args:
        tokens: [b, L].
        posterior: of these sentences, each [b, m].
        noise: ε, [b, K, m].
        memory_mb: limit on the hidden states of a chunk, and on its logits if these are kept, in MiB; changes no value.
        bf16: decode under autocast; losses stay float32 and weights float64.

    Returns:
        [b, K], float64.
    """
    z = Posterior(posterior.mean[:, None], posterior.log_variance[:, None]).sample(noise)
    prior_to_posterior = 0.5 * (noise.double().square() - z.double().square()).sum(dim=2)
    prior_to_posterior += 0.5 * posterior.log_variance.double().sum(dim=1, keepdim=True)
    losses = [each.sum(dim=1).double() for each in token_losses(decoder, tokens, z, memory_mb, bf16)]
    return prior_to_posterior - torch.cat(losses).view(noise.shape[:2])


def token_losses(decoder: Decoder, tokens: Tensor, z: Tensor, memory_mb: int, bf16: bool) -> Iterator[Tensor]:
    """Yield −log p(xₜ|x₍<t₎, z) for chunks of the draws, sentence by sentence: [n, L − 1], in nats.

    Args: those of ``importance_log_weights``, but for
        z: [b, K, m].
    """
    steps, values = tokens.shape[1] - 1, 12 * decoder.output.in_features
    if not decoder.output.fused:
        values += 3 * decoder.output.out_features
    chunk = max(1, memory_mb * 2**20 // (4 * steps * values))
    samples, z = z.shape[1], z.flatten(0, 1)
    for i in range(0, len(z), chunk):
        some = z[i : i + chunk]
        first, last = i // samples, (i + len(some) - 1) // samples
        sentence = torch.arange(i, i + len(some), device=z.device) // samples - first
        with torch.autocast(z.device.type, torch.bfloat16, enabled=bf16):
            losses = decoder.losses_of_draws(tokens[first : last + 1], some, sentence)
        yield losses


def importance_weighted_nll(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return −log of the mean weight and the effective sample size 1 / Σ w̃²: [b, K] → [b], [b]."""
    log_sum = torch.logsumexp(log_weights, dim=1)
    effective = torch.exp(2 * log_sum - torch.logsumexp(2 * log_weights, dim=1))
    return math.log(log_weights.shape[1]) - log_sum, effective


def mutual_information(
    posterior: Posterior, z: Tensor, ranks: Ranks, on_progress: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return log q(zᵢ|xᵢ) − log q(zᵢ) of each sentence in nats, where q(z) is the mixture of all N posteriors.

    Of more than ``MIXTURE`` posteriors, all others than the sentence's own are represented by as many at equal
    distances, so that the work grows with N and not with its square.

    Its mean estimates I(x; z) = mean KL(q(z|x) ‖ p) − KL(q(z) ‖ p) (Hoffman and Johnson, 2016). Both terms use the same
    draw, so each value, and hence the mean, is at most ln N.

    Args:
        posterior: [N, m] each, the same on every rank; float64, because the squares are expanded.
        z: one draw of each posterior, [N, m].
        on_progress: called between chunks, equally often on every rank.

    Returns:
        [N], the same on every rank. Ranks share the work: one collective, or none if z has no dimensions.
    """
    n = len(z)
    if z.shape[1] == 0:
        return np.zeros(n)
    values = torch.zeros(n, dtype=torch.float64, device=ranks.device)
    if n > MIXTURE:
        chosen = torch.linspace(0, n - 1, MIXTURE, dtype=torch.float64).round().long()
        part = Posterior(posterior.mean[chosen], posterior.log_variance[chosen])
        distances = (z - posterior.mean).square() * torch.exp(-posterior.log_variance)
        own_density = -0.5 * (distances + posterior.log_variance).sum(dim=1).to(values)
        chosen = chosen.to(values.device)
    else:
        part = posterior
    for number, (rows, log_density) in enumerate(mixture_densities(part, z, ranks)):
        if number:
            on_progress()
        numbers = torch.arange(n, device=values.device)[rows, None]
        if n > MIXTURE:
            own, is_own = own_density[rows], numbers == chosen
            others = torch.logsumexp(log_density.masked_fill(is_own, -math.inf), dim=1)
            mean_of_others = others - torch.log(MIXTURE - is_own.sum(dim=1).to(others)) + math.log((n - 1) / n)
            values[rows] = own - torch.logaddexp(own - math.log(n), mean_of_others)
        else:
            own = log_density.gather(1, numbers).squeeze(1)
            values[rows] = own - torch.logsumexp(log_density, dim=1) + math.log(n)
    return ranks.sum(values).cpu().numpy()


def mixture_densities(posterior: Posterior, z: Tensor, ranks: Ranks) -> Iterator[tuple[slice, Tensor]]:
    """Yield log q(z|xₙ) + m/2 ln 2π of a rank's points under every posterior, chunk by chunk, as often on every rank.

    Args:
        posterior: [N, m] each, the same on every rank; float64, because the squares are expanded.
        z: [k, m], m > 0, the same on every rank.

    Yields:
        Rows of z, maybe none, and their densities, [rows, N].
    """
    mean, log_variance, z = (x.to(ranks.device) for x in (posterior.mean, posterior.log_variance, z))
    precision = torch.exp(-log_variance)
    constant = (precision * mean.square() + log_variance).sum(dim=1)
    for rows in mixture_rows(len(z), len(mean), ranks):
        yield rows, -0.5 * (z[rows].square() @ precision.T - 2 * z[rows] @ (precision * mean).T + constant)


def mixture_rows(points: int, components: int, ranks: Ranks) -> Iterator[slice]:
    """Yield chunks of a rank's share of points, maybe empty ones, as often on every rank.

    A chunk times the components fits into memory.
    """
    mine = share(points, ranks.rank, ranks.world_size)
    chunk = max(1, _MIXTURE_VALUES // components)
    largest = -(-points // ranks.world_size)  # of the ranks' shares
    for done in range(0, largest, chunk):
        yield slice(min(mine.start + done, mine.stop), min(mine.start + done + chunk, mine.stop))


@dataclass(frozen=True)
class _Table:
    """One row per sentence, complete on every rank, float64."""

    tokens: np.ndarray  # [N]
    re: np.ndarray  # [N]
    rounded_re: np.ndarray  # [N], in the precision of the NLL
    nll: np.ndarray  # [N]
    effective: np.ndarray  # [N]
    posterior: Posterior  # [N, m] each
    z: Tensor  # [N, m]


def _score(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    ranks: Ranks,
    importance_samples: int,
    on_progress: Callable[[int], None],
) -> _Table:
    batch_size = settings.batch_size
    if importance_samples:
        batch_size = weighted_together(settings, model.latent_size, importance_samples)

    def score_batch(batch: Batch, numbers: np.ndarray) -> Tensor:
        return _score_batch(model, batch, numbers, settings, importance_samples, ranks.device)

    rows = of_each(sentences, batch_size, ranks, model.decoder.pad, 5 + 3 * model.latent_size, score_batch, on_progress)
    tokens, re, rounded_re, nll, effective = rows[:, :5].numpy().T
    mean, log_variance, z = rows[:, 5:].chunk(3, dim=1)
    return _Table(tokens, re, rounded_re, nll, effective, Posterior(mean, log_variance), z)


def weighted_together(settings: EvaluationConfig, latent_size: int, importance_samples: int) -> int:
    """Return how many sentences a rank weighs at once: as many as fit into the limit with all copies of their samples.

    There are at most ``evaluation.batch_size``.
    """
    fitting = settings.memory_mb * 2**20 // (_COPIES * 8 * latent_size)
    return min(settings.batch_size, max(1, min(_DRAWS, fitting) // importance_samples))


def of_each(
    sentences: Sentences,
    batch_size: int,
    ranks: Ranks,
    pad: int,
    columns: int,
    work: Callable[[Batch, np.ndarray], Tensor],
    on_progress: Callable[[int], None],
) -> Tensor:
    """Return what ``work`` finds for each sentence, on all ranks together: one collective.

    Args:
        batch_size: sentences of a rank at a time.
        work: takes a batch of b sentences and their numbers, and returns [b, columns].
        on_progress: called with the number of sentences since the last call, equally often on every rank.

    Returns:
        [N, columns], float64, in CPU memory, the same on every rank.
    """
    rows = torch.zeros(len(sentences), 1 + columns, dtype=torch.float64)
    for numbers in evaluation_plan(sentences.lengths, batch_size * ranks.world_size):
        mine = share(len(numbers), ranks.rank, ranks.world_size)
        if mine.stop > mine.start:
            batch = collate(sentences, numbers, mine, pad)
            rows[numbers[mine], 0] = 1
            rows[numbers[mine], 1:] = work(batch, numbers[mine]).double().cpu()
        on_progress(len(numbers))
    rows = ranks.sum(rows.to(ranks.device)).cpu()
    assert (rows[:, 0] == 1).all(), "a sentence was scored twice or not at all"
    return rows[:, 1:]


def weighted_draws(
    model: TextVAE,
    tokens: Tensor,
    posterior: Posterior,
    numbers: np.ndarray,
    settings: EvaluationConfig,
    importance_samples: int,
) -> tuple[Tensor, Tensor]:
    """Return the noise of the draws of z that the NLL of these sentences is computed from, and their log weights.

    Args:
        tokens: [b, L].
        posterior: of these sentences, each [b, m].
        numbers: of the sentences in their split, [b].
        importance_samples: K.

    Returns:
        ε [b, K, m], and log p(x|z) p(z) / q(z|x) [b, K], float64.
    """
    shape, device = tuple(posterior.mean.shape[1:]), tokens.device
    noise = sentence_noise(numbers, (importance_samples, *shape), device, settings.seed, "nll")
    bf16 = decodes_in_bf16(settings, device)
    return noise, importance_log_weights(model.decoder, tokens, posterior, noise, settings.memory_mb, bf16)


def decodes_in_bf16(settings: EvaluationConfig, device: torch.device) -> bool:
    """Return whether importance samples are decoded in bfloat16."""
    return settings.mixed_precision == "bf16" and has_bf16(device)


def _score_batch(
    model: TextVAE,
    batch: Batch,
    numbers: np.ndarray,
    settings: EvaluationConfig,
    importance_samples: int,
    device: torch.device,
) -> Tensor:
    """Return rows of the table: tokens, RE, RE in the precision of the NLL, NLL, effective samples, μ, log σ², z.

    Returns:
        [b, 5 + 3m], float64.
    """
    tokens, lengths = batch.tokens.to(device), batch.lengths.to(device)
    posterior = model.encoder(tokens, lengths)
    shape = tuple(posterior.mean.shape[1:])
    z = posterior.sample(sentence_noise(numbers, shape, device, settings.seed, "elbo"))
    re = rounded_re = model.decoder.reconstruction(tokens, z)
    nll = effective = torch.zeros_like(re)
    if importance_samples:
        if decodes_in_bf16(settings, device):
            with torch.autocast(device.type, torch.bfloat16):
                rounded_re = model.decoder.reconstruction(tokens, z)
        _, weights = weighted_draws(model, tokens, posterior, numbers, settings, importance_samples)
        nll, effective = importance_weighted_nll(weights)
    columns = [lengths - 1, re, rounded_re, nll, effective]
    return torch.cat([torch.stack([c.double() for c in columns], 1), *(x.double() for x in (*posterior, z))], 1)
