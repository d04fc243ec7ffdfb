"""The aggregate posterior of a trained model beside its prior: ``posterior.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from distvae.config.schema import EvaluationConfig
from distvae.data import batches
from distvae.data.new_text import Part, check_parts
from distvae.data.sentences import Sentences
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.ranks import Ranks
from distvae.distributed.runtime import Runtime
from distvae.evaluation import aggregate, mixture
from distvae.evaluation.aggregate import Divergence, Far
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.encoding import all_posteriors
from distvae.evaluation.generation import decode_ids, prior_draws
from distvae.evaluation.mixture import Mixture
from distvae.evaluation.ngrams import NGrams
from distvae.evaluation.scores import Estimate, mean_estimate
from distvae.evaluation.texts import Ids, ngram_perplexity
from distvae.model.draws import sentence_noise
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE
from distvae.runs.checkpoints import Export
from distvae.runs.findings import Findings
from distvae.system.errors import UserError
from distvae.system.files import sha256
from distvae.system.progress_bar import Progress


@dataclass(frozen=True)
class Draws:
    """Draws of z, or the sentences of the split.

    Attributes:
        count: how many.
        far: share that is far from q(z); see ``aggregate.Far``. None: these are sentences, or chosen by that.
        forward_ppl: perplexity per token, by trigrams of train, of a sentence decoded from each by sampling its words.
            None: none was decoded.
    """

    count: int
    far: Estimate | None
    forward_ppl: Estimate | None


@dataclass(frozen=True)
class Bound:
    """The NLL from K importance samples.

    Attributes:
        samples: K.
        nll: in nats per sentence; with K = 1, −ELBO.
        effective: mean over sentences of the effective number of samples.
    """

    samples: int
    nll: Estimate
    effective: float


@dataclass(frozen=True)
class AggregatePosterior(Findings):
    """Contents of ``posterior.json``. All in nats per sentence, but for ``draws``.

    Attributes:
        split: whose sentences q(z) is of.
        seed: of all draws, and of the mixture.
        model: SHA-256 of the weights.
        sentences: number of them.
        train: number of sentences whose posteriors are the mixture that held-out points are compared with.
        components: number of Gaussians of the mixture that is fitted to train.
        divergence: the parts of the KL.
        closer: by how much the fitted mixture is closer to q(z) than the prior, KL(q(z)‖p) − KL(q(z)‖mixture), and so
            the gain in ELBO. It has no bias by the number of sentences, because log q(z) cancels out.
        draws: ``posterior``, ``prior``, of these ``prior, far`` and ``prior, near``; ``mixture``; and ``sentences``.
        nll: under ``prior`` and ``mixture`` as the prior, by number of samples. None: not computed. An autoencoder has
            none under the prior.
        gain: NLL under the prior − NLL under the mixture, paired; None without either.
    """

    split: str
    seed: int
    model: str
    sentences: int
    train: int
    components: int
    divergence: Divergence
    closer: Estimate
    draws: dict[str, Draws]
    nll: dict[str, tuple[Bound, ...]] | None
    gain: Estimate | None


def examine(
    name: str,
    found: Export,
    parts: dict[str, Part],
    split: str,
    settings: EvaluationConfig,
    components: int,
    quick: bool,
    runtime: Runtime,
) -> AggregatePosterior:
    """Compare the aggregate posterior of a split with the prior. Every process must call this, and gets the same.

    Args:
        name: of the model, for errors.
        settings: K and the seed.
        components: number of Gaussians to fit to train.
        quick: leave out what is decoded: the NLL and the sentences of draws.

    Raises:
        UserError: there is no such split, it is train, or train has fewer sentences than Gaussians.
    """
    runtime.agree({"run": name, "split": split, "components": components, "quick": quick} | asdict(settings))
    check_parts(name, parts, split, f"the posteriors of {split} are compared with those of train")
    if split == "train":
        raise UserError("--split train: the sentences are compared with train; choose a split that is held out from it")
    model, seed = found.model(runtime.device), settings.seed
    train, test = parts["train"].sentences, parts[split].sentences
    with Progress("encode", len(train) + len(test), runtime.is_main) as progress:
        q_train, q = (all_posteriors(model, part, runtime, progress.advance) for part in (train, test))
    some = mixture.chosen(len(train), seed)
    fitted = runtime.on_main(lambda: mixture.fit(Posterior(*(x[some] for x in q_train)), components, seed))
    noise = sentence_noise(range(len(test)), (model.latent_size,), runtime.device, seed, "elbo").cpu()
    drawn = {
        "posterior": q.sample(noise.to(q.mean.dtype)),
        "prior": prior_draws(model, len(test), seed).cpu(),
        "mixture": fitted.draws(len(test), seed).to(q.mean.dtype),
    }
    with Progress("densities", 5 * len(test), runtime.is_main) as progress:
        held_out = {kind: aggregate.log_mixture(q_train, z, runtime, progress.advance) for kind, z in drawn.items()}
        z = drawn["posterior"]
        own, joint = aggregate.log_own(q, z), aggregate.log_mixture(q, z, runtime, progress.advance)
        marginals = aggregate.log_marginals(q, z, runtime, progress.advance)
    texts = {} if quick else _texts(model, drawn, test, found.vocabulary, seed, runtime)
    far = Far(held_out["posterior"], seed)
    nll, gain = (None, None) if quick else _nll(found, model, test, settings, fitted, runtime)
    return AggregatePosterior(
        split=split,
        seed=seed,
        model=sha256(found.folder / "model.safetensors"),
        sentences=len(test),
        train=len(train),
        components=len(fitted.weights),
        divergence=aggregate.divergence(own, joint, marginals, held_out["posterior"], z),
        closer=mean_estimate(fitted.log_density(z).numpy() - aggregate.log_prior(z)),
        draws=runtime.on_main(lambda: _draws(held_out, far, texts, train, len(found.vocabulary))),
        nll=nll,
        gain=gain,
    )


def _texts(
    model: TextVAE, drawn: dict[str, Tensor], test: Sentences, vocabulary: Vocabulary, seed: int, runtime: Runtime
) -> dict[str, Ids]:
    """Return the sentences of the split, and one that is decoded from each draw: ids of ``<s> w₁ … wₙ </s>``."""
    decoding = Decoding(method="sample", seed=seed)
    found: dict[str, Ids] = {"sentences": [ids.tolist() for ids in test]}
    with Progress("decode", len(test) * len(drawn), runtime.is_main) as progress:
        for kind, z in drawn.items():
            found[kind] = _decoded(model, z, vocabulary, decoding, runtime, progress)
    return found


def _decoded(
    model: TextVAE, z: Tensor, vocabulary: Vocabulary, decoding: Decoding, ranks: Ranks, progress: Progress
) -> Ids:
    """Decode a sentence from each z, on all ranks together: one collective."""
    mine = batches.share(len(z), ranks.rank, ranks.world_size)
    # Ids of w₁ … wₙ plus 1, so that 0 is no token.
    rows = torch.zeros(len(z), decoding.max_tokens, dtype=torch.int64)
    some = decode_ids(
        model, z[mine], vocabulary, decoding, lambda done: progress.advance(done * ranks.world_size), mine.start
    )
    for row, ids in zip(rows[mine], some, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64) + 1
    rows = ranks.sum(rows.to(ranks.device)).cpu()
    return [[vocabulary.bos, *(row[row > 0] - 1).tolist(), vocabulary.eos] for row in rows]


def _draws(
    held_out: dict[str, np.ndarray], far: Far, texts: dict[str, Ids], train: Sentences, vocabulary_size: int
) -> dict[str, Draws]:
    """Return what is known of each kind of draw."""
    trigrams = NGrams((ids.tolist() for ids in train), vocabulary_size) if texts else None

    def ppl(some: Ids) -> Estimate | None:
        return ngram_perplexity(trigrams, some) if trigrams and some else None

    found = {}
    for kind, density in held_out.items():
        # Of the draws that define it, the share has no error.
        share = Estimate(float(far.are(density).mean()), 0.0) if kind == "posterior" else far.share(density)
        found[kind] = Draws(len(density), share, ppl(texts.get(kind, ())))
    are = far.are(held_out["prior"])
    for kind, wanted in (("prior, far", are), ("prior, near", ~are)):
        some = [ids for ids, chosen in zip(texts.get("prior", ()), wanted, strict=False) if chosen]
        found[kind] = Draws(int(wanted.sum()), None, ppl(some))
    if texts:
        found["sentences"] = Draws(len(texts["sentences"]), None, ppl(texts["sentences"]))
    return found


def _nll(
    found: Export, model: TextVAE, test: Sentences, settings: EvaluationConfig, fitted: Mixture, runtime: Runtime
) -> tuple[dict[str, tuple[Bound, ...]], Estimate | None]:
    """Return the NLL by number of samples under each prior, and the gain of the mixture."""
    priors: dict[str, Mixture | None] = {"mixture": fitted}
    if not found.config.autoencoder:  # whose z was never held to the prior
        priors = {"prior": None, **priors}
    counts = aggregate.sample_counts(settings.importance_samples)
    with Progress("importance samples", len(test), runtime.is_main) as progress:
        curves = aggregate.curves(model, test, settings, counts, [*priors.values()], runtime, progress.advance)
    nll = {kind: _bounds(counts, curve) for kind, curve in zip(priors, curves, strict=True)}
    gain = mean_estimate(curves[0].nll[:, -1] - curves[1].nll[:, -1]) if len(curves) > 1 else None
    return nll, gain


def _bounds(counts: Sequence[int], curve: aggregate.Curve) -> tuple[Bound, ...]:
    columns = zip(counts, curve.nll.T, curve.effective.T, strict=True)
    return tuple(Bound(count, mean_estimate(nll), float(effective.mean())) for count, nll, effective in columns)
