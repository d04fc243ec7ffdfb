"""Score an exported model on the sentences of its training, or on new text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from distvae.config.schema import CAPTIONS, DataConfig, EvaluationConfig
from distvae.data.new_text import NewText
from distvae.data.sentences import Sentences
from distvae.distributed.runtime import Runtime
from distvae.evaluation.scores import Floor, SentenceScores
from distvae.evaluation.scoring import floor, score
from distvae.model.vae import TextVAE
from distvae.runs.checkpoints import Export
from distvae.runs.reading import own_corpus
from distvae.runs.results import Results, sentence_table
from distvae.system.files import write_bytes, writing
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
    prepared = own_corpus(name, found, data, runtime)
    sentences: Sentences = getattr(prepared, split).in_memory()
    lowest = None
    if data.path == CAPTIONS:
        with Progress("floor", len(sentences), runtime.is_main) as progress:
            lowest = floor(sentences, prepared.vocabulary, runtime, progress.advance)
    model, unknown = found.model(runtime.device), prepared.unknown[split]
    results, _ = _results(found, model, split, sentences, settings, runtime, lowest, prepared.fingerprint, unknown)
    return results


def score_text(
    found: Export, text: NewText, settings: EvaluationConfig, runtime: Runtime
) -> dict[str, tuple[Results, SentenceScores]]:
    """Score each split of new text, as ``rescore`` does. Every process must call this."""
    runtime.agree({"data": text.fingerprint} | asdict(settings))
    model = found.model(runtime.device)
    return {
        split: _results(found, model, split, part.sentences, settings, runtime, None, text.fingerprint, part.unknown)
        for split, part in text.parts.items()
    }


def write_sentence_scores(
    path: Path, found: Export, text: NewText, scored: dict[str, tuple[Results, SentenceScores]]
) -> None:
    """Write a Parquet file with a row per sentence: ``sentence``, ``split``, its scores in nats, and its labels.

    Raises:
        UserError: the file cannot be written.
    """
    tables = []
    for split, (_, each) in scored.items():
        part = text.parts[split]
        table = sentence_table(each, part.labels)
        sentences = part.shown(slice(0, len(part.sentences)), found.vocabulary)
        tables.append(
            table.add_column(0, "split", [[split] * len(table)]).add_column(
                0, "sentence", pa.chunked_array([pa.array(sentences, pa.string())])
            )
        )
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.concat_tables(tables, promote_options="default"), sink)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, sink.getvalue().to_pybytes())


def _results(
    found: Export,
    model: TextVAE,
    split: str,
    sentences: Sentences,
    settings: EvaluationConfig,
    runtime: Runtime,
    lowest: Floor | None,
    fingerprint: str,
    unknown: float | None,
) -> tuple[Results, SentenceScores]:
    with Progress("evaluate", len(sentences), runtime.is_main) as progress:
        samples = 0 if found.config.autoencoder else settings.importance_samples
        scores, each = score(model, sentences, settings, runtime, samples, progress.advance)
    results = Results(
        split=split,
        scores=scores,
        floor=lowest,
        stages=(),
        vocabulary=found.vocabulary.fingerprint,
        vocabulary_size=len(found.vocabulary),
        data=fingerprint,
        world_size=runtime.world_size,
        unknown=unknown,
        latent=scores.latent(found.config, found.config.last_stage),
        tokenizer=found.vocabulary.tokenizer,
    )
    return results, each
