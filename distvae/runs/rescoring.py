"""Score an exported model again on the data that it was trained on."""

from __future__ import annotations

import sys
from dataclasses import asdict

from distvae.config.schema import CAPTIONS, DataConfig, EvaluationConfig
from distvae.data import corpus
from distvae.distributed.runtime import Runtime
from distvae.evaluation.scoring import floor, score
from distvae.runs.checkpoints import Export
from distvae.runs.results import Results
from distvae.system.errors import UserError
from distvae.system.progress_bar import Progress


def rescore(
    name: str, found: Export, split: str, data: DataConfig, settings: EvaluationConfig, runtime: Runtime
) -> Results:
    """Score a split with K = ``settings.importance_samples``; an autoencoder gets no NLL. Every process must call this.

    Args:
        name: name of the export, for errors.
        split: train, valid or test.
        data: location of the sentences.

    Raises:
        UserError: the model was trained on other sentences.
    """
    runtime.agree({"run": name, "split": split} | asdict(settings))
    folder = runtime.on_main(lambda: corpus.prepare(data, progress=sys.stderr.isatty()))
    prepared = corpus.load(folder)
    if prepared.vocabulary.fingerprint != found.vocabulary.fingerprint:
        raise UserError(
            f"{name}: its vocabulary ({found.vocabulary.fingerprint}) is not that of {data.path}"
            f" ({prepared.vocabulary.fingerprint}): it was trained on other sentences"
        )
    sentences = getattr(prepared, split)
    with Progress("evaluate", len(sentences), runtime.is_main) as progress:
        samples = 0 if found.config.autoencoder else settings.importance_samples
        scores, _ = score(found.model(runtime.device), sentences, settings, runtime, samples, progress.advance)
    lowest = None
    if data.path == CAPTIONS:
        with Progress("floor", len(sentences), runtime.is_main) as progress:
            lowest = floor(sentences, prepared.vocabulary, runtime, progress.advance)
    return Results(
        split=split,
        scores=scores,
        floor=lowest,
        stages=(),
        vocabulary=found.vocabulary.fingerprint,
        vocabulary_size=len(found.vocabulary),
        data=prepared.fingerprint,
        world_size=runtime.world_size,
        unknown=prepared.unknown[split],
        latent=scores.latent(found.config, found.config.last_stage),
        tokenizer=found.vocabulary.tokenizer,
    )
