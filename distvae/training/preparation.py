"""What a run needs before its first step: the corpus, an encoder to start from, a checkpoint to resume from."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from distvae.config.schema import Config
from distvae.data import corpus
from distvae.data.corpus import Corpus
from distvae.distributed.runtime import Runtime
from distvae.model.vae import TextVAE
from distvae.runs import checkpoints
from distvae.runs.checkpoints import Checkpoint, Weights
from distvae.runs.results import StageEnd
from distvae.system.errors import UserError, printable
from distvae.system.files import check_as, writing
from distvae.system.plural import counted


def prepare_corpus(config: Config, run: Path, runtime: Runtime) -> Corpus:
    """Prepare the corpus on every machine that does not share the main process's cache, and load it.

    Raises:
        UserError: the batch is too small for the ranks; the data cannot be read, or differ between machines.
    """
    size, steps = config.optimizer.batch_size, config.optimizer.accumulation_steps
    if size < runtime.world_size * steps:
        processes = counted(runtime.world_size, "process", "processes")
        raise UserError(
            f"optimizer.batch_size = {size}: smaller than {processes} × {counted(steps, 'accumulation step')}; each"
            " needs a sentence"
        )
    folder = runtime.on_main(lambda: corpus.prepare(config.data, progress=sys.stderr.isatty()))

    def prepare_own() -> None:
        if runtime.is_main or corpus.is_whole(folder):
            return
        own = corpus.prepare(config.data, progress=sys.stderr.isatty())
        if own.name != folder.name:
            raise UserError(
                f"data.path={config.data.path}: rank {runtime.rank} finds other sentences there ({own.name}) than rank"
                f" 0 ({folder.name}); give every machine the same file"
            )

    runtime.on_each_machine(prepare_own)
    sentences = corpus.load(folder)
    runtime.agree({"the vocabulary's fingerprint": sentences.vocabulary.fingerprint})
    runtime.on_main(lambda: note(run, sentences))
    return sentences


def note(run: Path, sentences: Corpus) -> None:
    """Write the vocabulary to the run's folder, and print the corpus's notes."""
    with writing(run):
        sentences.vocabulary.save(run / "vocabulary.json")
    for line in sentences.notes:
        print(printable(line))


def pretrained_encoder(config: Config, source: str, fingerprint: str) -> Weights:
    """Load the encoder of ``pretrained=source``.

    Args:
        fingerprint: of this run's vocabulary.

    Raises:
        UserError: it is damaged, or its vocabulary, its sizes or its pooling differ from this run's.
    """
    pretrained = checkpoints.load_export(source, kind="pretrained")
    if pretrained.vocabulary.fingerprint != fingerprint:
        raise UserError(
            f"pretrained={source}: its vocabulary ({pretrained.vocabulary.fingerprint}) is not this run's"
            f" ({fingerprint}); both need the same data settings"
        )
    pretrained.check()
    theirs, ours = pretrained.config.model.flat(), config.model.flat()
    for name in ("embedding_size", "hidden_size", "latent_size", "pooling", "posterior"):
        if theirs[name] != ours[name]:
            raise UserError(f"pretrained={source}: model.{name} is {theirs[name]} there and {ours[name]} here")
    return {
        name.removeprefix("encoder."): value
        for name, value in pretrained.weights.items()
        if name.startswith("encoder.")
    }


def load_resumed(folder: Path, model: TextVAE, is_main: bool) -> tuple[Checkpoint, list[StageEnd]]:
    """Load the checkpoint to resume from, and the stages that had ended.

    Raises:
        UserError: it is damaged, or does not fit the model.
    """
    found = checkpoints.load_checkpoint(folder)
    for weights in (found.weights, found.best_weights):
        if weights is not None:
            checkpoints.check_weights(model, weights, folder)
    ended = check_as(list[StageEnd], found.state.ended, folder / "state.json", "the state of a run")
    if is_main:
        state = found.state
        at = f"epoch {state.epoch}" + (f" and {counted(state.batches, 'batch', 'batches')}" if state.batches else "")
        print(printable(f"resuming from {folder}: step {state.step:,}, {state.stage} {at}"))
    return found, ended


def introduce(config: Config, run: Path, runtime: Runtime, sentences: Corpus, model: TextVAE) -> None:
    """Print what is trained, on what."""
    sizes = "/".join(f"{len(split):,}" for split in (sentences.train, sentences.valid, sentences.test))
    parameters = sum(p.numel() for p in model.parameters())
    if runtime.emulates_bf16:
        print("this CPU has no bfloat16 instructions: mixed_precision=bf16 is slower here than no")
    where = runtime.device.type
    if where == "cpu":
        where = f"CPU, {counted(torch.get_num_threads(), 'thread')} each"
    line = (
        f"{run}: {config.data.path}, {sizes} sentences, {len(sentences.vocabulary):,} tokens in the vocabulary;"
        f" {parameters / 1e6:.1f}M parameters; {runtime.processes} on {where}"
    )
    print(printable(line))
