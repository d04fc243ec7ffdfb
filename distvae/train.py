"""The training program: ``python distvae/train.py CONFIG [key=value …]``, for several processes ``accelerate launch
distvae/train.py …``. Read it from the top down.

Config → corpus → model → prepare → resume → stages → evaluate.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # The imports take seconds, in which there is nothing to save: Ctrl-C ends the program without a traceback of them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch

from distvae import __version__
from distvae.config.load import flatten, known_keys, load_config, with_precision
from distvae.config.schema import CAPTIONS, Config
from distvae.config.yaml import ConfigError
from distvae.data import corpus
from distvae.data.batches import Batch, collate, share, training_plan
from distvae.data.corpus import Corpus, Sentences
from distvae.distributed.engine import load_optimizer_state, make_engine, optimizer_state, set_learning_rate
from distvae.distributed.graphs import Compute, GraphedSteps
from distvae.distributed.interruption import Look, Looks
from distvae.distributed.runtime import Runtime, out_of_memory
from distvae.evaluation import generation
from distvae.evaluation.scoring import Floor, Scores, SentenceScores, floor, score
from distvae.methods import FreeBits
from distvae.methods.annealing import Annealing
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.kl import kl_per_dimension
from distvae.methods.policy import Gamma
from distvae.model import draws
from distvae.model.vae import Noise, initialise, model_of
from distvae.reports import comparison
from distvae.runs import checkpoint, tracking
from distvae.runs.checkpoint import Checkpoint, RunState, Saver, Weights
from distvae.runs.results import Results, StageEnd, save_results, save_sentence_scores
from distvae.runs.resume import Opening, holds_run, open_run
from distvae.runs.starts import Hold, OvertakenError
from distvae.runs.tracking import EpochRecord, Progress, Saving, Tracker, TrainEpoch, code_digest
from distvae.system import launcher, streams
from distvae.system.arguments import Parser
from distvae.system.errors import PeerError, UserError, printable, tell
from distvae.system.files import check_as, write_json, writing
from distvae.system.signals import ENDED, INTERRUPTED, InterruptedRun, Signals
from distvae.training.plateau import Plateau, Verdict

# Keys in which the ranks of a run may differ.
PER_PROCESS = {"cpu_threads", "data.path", "data.workers"}


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 when the run has finished, 2 on bad input, which gets one line, 75 when it was interrupted and can
    go on, 130 when it was told to end at once."""
    streams.secure()
    parser = Parser(prog="distvae/train.py", description="Train an LSTM-VAE of sentences.", settings=known_keys(Config))
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/demo/pt_kla_sfb.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as kl.target_rate=6 run=runs/six"
    )
    options = parser.parse_args(arguments)
    signals = Signals()
    try:
        try:
            signals.install()
            code = _attempt(options, signals)
        except KeyboardInterrupt:
            # Asked twice, it is not to go on; asked once, there was nothing to save yet.
            code = ENDED if signals.asked == "SIGINT" else INTERRUPTED
        # Launchers end the processes that are left once one has ended, by a signal that must not come before this.
        if launcher.is_main():
            launcher.leave_code(code)
    finally:
        signals.restore()
    return code


def _attempt(options: argparse.Namespace, signals: Signals) -> int:
    try:
        train(load_config(options.config, options.overrides), signals)
    except InterruptedRun as interrupted:
        if launcher.is_main():
            print(printable(f"{interrupted}; the same command goes on"), file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if isinstance(error, ConfigError) and error.run is not None:
            with contextlib.suppress(OSError, UserError):  # `run` may be what is wrong
                if not holds_run(Path(error.run)):
                    tracking.write_status(Path(error.run), "failed", str(error))
        tell(error)
        return 2
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        rank = f"rank {launcher.number('RANK', 0)} is " if launcher.number("WORLD_SIZE", 1) > 1 else ""
        message = f"{rank}out of memory: {error}; smaller sizes in model or optimizer.batch_size need less"
        tell(UserError(message), own=True)
        return 2
    return 0


@dataclass(frozen=True)
class Caller:
    """What a program asks of a run that is a part of its own work, such as a trial of a sweep."""

    # Called on every rank with each epoch's record, once the epoch has been handed over to be saved.
    after_epoch: Callable[[EpochRecord], None] = lambda record: None
    # Whether it is to be on disk by then.
    waits: bool = False
    # More keys in which the config may differ from that of the checkpoint that the run goes on from.
    may_change: frozenset[str] = frozenset()
    # Whether a start of the run that seems to live is known to be over.
    overtakes: bool = False


def train(config: Config, signals: Signals | None = None, caller: Caller | None = None) -> Results:
    """Run a config to its end: every process of the run calls this.

    Args:
        signals: what may ask the run to stop; None: nothing.
        caller: what else is wanted of the run; None: nothing.

    Raises:
        UserError: bad input, or numbers that are no longer finite; ``status.json`` says so too.
        InterruptedRun: a signal asked to stop; all is saved.
    """
    signals = signals or Signals()
    runtime = Runtime(config.optimizer, config.communication, config.cpu_threads, config.speed.keep_memory)
    config = with_precision(config, runtime.mixed_precision)
    try:
        if runtime.world_size > 1:
            runtime.agree(_agreed(config))
        results = carry_out(config, Path(config.run), runtime, signals, caller or Caller())
    except (UserError, InterruptedRun):
        runtime.close()
        raise
    # After any other error the peers may be waiting in a collective: only the end of this process tells them.
    runtime.close()
    return results


def _agreed(config: Config) -> dict[str, Any]:
    """What all ranks have to be started with alike, by name."""
    settings = {key: value for key, value in flatten(config) if key not in PER_PROCESS}
    return {"distvae.__version__": __version__, "the code's SHA-256": code_digest()} | settings


def carry_out(config: Config, run: Path, runtime: Runtime, signals: Signals, caller: Caller) -> Results:
    """Train and score, unless the run has finished already."""
    opening = runtime.on_main(lambda: open_run(config, run, runtime.processes, caller.may_change, caller.overtakes))
    results = opening.results
    if results is None:
        hold = Hold(run, opening.start) if runtime.is_main else None
        if runtime.is_main and runtime.heartbeat is not None:
            number = opening.start.number
            runtime.heartbeat.on_loss = lambda reason: _tell_status(run, hold, number, UserError(reason))
        try:
            trainer = Trainer(config, run, runtime, opening, signals, hold, caller)
            with signals.deferred():
                trainer.run_stages()
                results = trainer.finish()
        except BaseException as error:
            if runtime.is_main:
                _tell_status(run, hold, opening.start.number, error)
            raise
        finally:
            if runtime.is_main:
                hold.release()
    if runtime.is_main:
        comparison.show({run.name: results})
    return results


def _tell_status(run: Path, hold: Hold, start: int, error: BaseException) -> None:
    """Say how a run ended before its end, unless that is no longer this start's to say."""
    interrupted = isinstance(error, (InterruptedRun, KeyboardInterrupt))
    with contextlib.suppress(OSError, OvertakenError):  # the error that led here is what counts
        hold.check()
        state = "interrupted" if interrupted else "failed"
        tracking.write_status(run, state, str(error) or None, start, tracking.last_latent(run))


@dataclass(frozen=True)
class Stage:
    """A stretch of training with a learning rate, counters and a best of its own."""

    name: str
    number: int
    max_epochs: int
    policy: Gamma
    free_bits: FreeBits
    autoencoder: bool  # γ is 0 for good: judged by RE alone

    def loss(self, scores: Scores) -> float:
        """The validation loss: −ELBO at weight 1 whatever γ is."""
        return scores.re.mean if self.autoencoder else scores.neg_elbo.mean


def stages_of(config: Config) -> list[Stage]:
    """The stages a config asks for (paper, Algorithm 1)."""
    stages = []
    if config.pretrain.max_epochs and config.pretrained is None:
        stages.append(Stage("pretrain", 0, config.pretrain.max_epochs, Annealing(0.0), NoFreeBits(), True))
    if config.train.max_epochs:
        kl = config.kl
        stages.append(
            Stage("train", 1, config.train.max_epochs, kl.policy.start(), kl.free_bits, kl.policy.autoencoder)
        )
    return stages


@dataclass(frozen=True)
class Best:
    """The best weights of a stage, and γ as they were trained."""

    weights: Weights
    epoch: int
    kl_weight: float
    passed_over: int = 0  # epochs since then whose weights might not be the best


@dataclass
class StageProgress:
    """How far a stage has come."""

    plateau: Plateau
    epoch: int = 0  # that have ended
    converged: bool = False
    best: Best | None = None


@dataclass
class EpochProgress:
    """How far an epoch has come."""

    sums: _Sums
    batches: int = 0  # that are trained
    seconds: float = 0.0  # that these took
    save: bool = False  # as soon as may be
    stop: bool = False  # as soon as may be


class Trainer:
    """A run between its opening and its results.

    Args:
        opening: the number of this start, and the checkpoint to go on from.
        signals: what may ask to stop.
        hold: of the main process, on the run's folder; None on the others.
        caller: what else is wanted of the run.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        runtime: Runtime,
        opening: Opening,
        signals: Signals,
        hold: Hold | None,
        caller: Caller,
    ):
        self.config, self.run, self.runtime, self.caller = config, run, runtime, caller
        self.start, self.hold, self.signals = opening.start.number, hold, signals
        parts = runtime.world_size * config.optimizer.accumulation_steps
        if config.optimizer.batch_size < parts:
            raise UserError(
                f"optimizer.batch_size = {config.optimizer.batch_size}: smaller than {runtime.world_size} processes ×"
                f" {config.optimizer.accumulation_steps} accumulation steps; each needs a sentence"
            )
        self.corpus = self._corpus()
        self.vocabulary = self.corpus.vocabulary
        self.step = 0
        self.ended: list[StageEnd] = []

        self.model = model_of(config, len(self.vocabulary), self.vocabulary.pad, self.vocabulary.unknown)
        initialise(self.model, config.model, draws.generator("cpu", config.seed, "initial weights"))
        self.resumed = None if opening.checkpoint is None else self._resume(opening.checkpoint)
        if config.pretrained is not None and self.resumed is None:
            self.model.encoder.load_state_dict(self._pretrained_encoder(config.pretrained))
        self.model.to(runtime.device)
        self.engine = make_engine(runtime, self.model, config.optimizer, config.speed.embedding_gradients)
        self.graphs = self._graphs() if config.speed.cuda_graphs else None

        self.looks = Looks(runtime, signals)
        self.no_bad_step = torch.full((), math.inf, dtype=torch.float64, device=runtime.device)
        self.failure: UserError | None = None  # of a write, until all ranks know
        self.saves, self.stall, self.saved = 0, 0.0, time.monotonic()  # since the last record; the last save
        self.saver, self.tracker = None, None
        if runtime.is_main:
            self.saver = Saver(run, self.start, config.checkpoint.keep, hold.check)
        self.runtime.on_main(self._begin)

    def _begin(self) -> None:
        """Take over what the run has recorded and saved; from here on it is this start's."""
        recorded = 0
        if self.resumed is not None:
            recorded = self.resumed.state.recorded_step
            self.saver.save(self.resumed)
            self.saver.wait()
        with writing(self.run):
            self.hold.begin(recorded)
            self.tracker = Tracker(self.run, recorded)
            if self.resumed is not None and self.resumed.state.stage == "train" and self.resumed.best_weights:
                self._export("best", self.resumed.best_weights)
        self._introduce()

    def _graphs(self) -> GraphedSteps:
        alone = self.runtime.device.type == "cuda" and self.runtime.engine == "alone"
        if not alone or self.config.optimizer.accumulation_steps > 1:
            raise UserError(
                "speed.cuda_graphs needs a process alone on a GPU and optimizer.accumulation_steps=1, not"
                f" {self.runtime.processes} on {self.runtime.device.type} with"
                f" {self.config.optimizer.accumulation_steps}"
            )
        return GraphedSteps(list(self.model.parameters()))

    # -- What a run starts from ----------------------------------------------------------------------------------------

    def _corpus(self) -> Corpus:
        folder = self.runtime.on_main(lambda: corpus.prepare(self.config.data, progress=sys.stderr.isatty()))
        # A machine that does not see the main process's cache makes its own.
        self.runtime.on_each_machine(
            lambda: self.runtime.is_main or corpus.is_whole(folder) or self._prepare_own(folder)
        )
        sentences = corpus.load(folder)
        self.runtime.agree({"the vocabulary's fingerprint": sentences.vocabulary.fingerprint})
        self.runtime.on_main(lambda: self._note(sentences))
        return sentences

    def _prepare_own(self, folder: Path) -> None:
        own = corpus.prepare(self.config.data, progress=sys.stderr.isatty())
        if own.name != folder.name:
            raise UserError(
                f"data.path={self.config.data.path}: rank {self.runtime.rank} finds other sentences there ({own.name})"
                f" than rank 0 ({folder.name}); give every machine the same file"
            )

    def _note(self, sentences: Corpus) -> None:
        with writing(self.run):
            sentences.vocabulary.save(self.run / "vocabulary.json")
        for note in sentences.notes:
            print(printable(note))

    def _introduce(self) -> None:
        sizes = "/".join(f"{len(split):,}" for split in (self.corpus.train, self.corpus.valid, self.corpus.test))
        parameters = sum(p.numel() for p in self.model.parameters())
        if self.runtime.emulates_bf16:
            print("this CPU has no bfloat16 instructions: mixed_precision=bf16 is slower here than no")
        where = self.runtime.device.type
        if where == "cpu":
            threads = torch.get_num_threads()
            where = f"CPU, {threads} thread{'s' if threads > 1 else ''} each"
        line = (
            f"{self.run}: {self.config.data.path}, {sizes} sentences, {len(self.vocabulary):,} tokens in the"
            f" vocabulary; {parameters / 1e6:.1f}M parameters; {self.runtime.processes} on {where}"
        )
        print(printable(line))

    def _pretrained_encoder(self, source: str) -> Weights:
        pretrained = checkpoint.load_export(source, kind="pretrained")
        if pretrained.vocabulary.fingerprint != self.vocabulary.fingerprint:
            raise UserError(
                f"pretrained={source}: its vocabulary ({pretrained.vocabulary.fingerprint}) is not this run's"
                f" ({self.vocabulary.fingerprint}); both need the same data settings"
            )
        theirs, ours = asdict(pretrained.config.model), asdict(self.config.model)
        for name in ("embedding_size", "hidden_size", "latent_size"):
            if theirs[name] != ours[name]:
                raise UserError(f"pretrained={source}: model.{name} is {theirs[name]} there and {ours[name]} here")
        return {
            name.removeprefix("encoder."): value
            for name, value in pretrained.weights.items()
            if name.startswith("encoder.")
        }

    def _resume(self, folder: Path) -> Checkpoint:
        found = checkpoint.load_checkpoint(folder)
        for weights in (found.weights, found.best_weights):
            if weights is not None:
                checkpoint.check_weights(self.model, weights, folder)
        self.step = found.state.step
        self.ended = check_as(list[StageEnd], found.state.ended, folder / "state.json", "the state of a run")
        if self.runtime.is_main:
            state = found.state
            at = f"epoch {state.epoch}" + (f" and {state.batches:,} batches" if state.batches else "")
            print(printable(f"going on from {folder}: step {state.step:,}, {state.stage} {at}"))
        return found

    # -- Stages --------------------------------------------------------------------------------------------------------

    def run_stages(self) -> None:
        """Train every stage that has not ended, each from the best weights of the one before."""
        keep_encoder = self.config.pretrained is not None
        for stage in stages_of(self.config):
            resumed = self.resumed if self.resumed and self.resumed.state.stage == stage.name else None
            if any(end.stage == stage.name for end in self.ended) and resumed is None:
                continue
            if resumed is None and keep_encoder:
                initialise(
                    self.model.decoder, self.config.model, draws.generator("cpu", self.config.seed, "decoder reset")
                )
                self.engine.scatter()
            self._run_stage(stage, resumed)
            keep_encoder = True

    def _run_stage(self, stage: Stage, resumed: Checkpoint | None) -> None:
        progress = StageProgress(Plateau(self.config.plateau, self.config.optimizer.learning_rate))
        load_optimizer_state(self.engine, {} if resumed is None else resumed.optimizer)
        if self.graphs is not None:
            self.graphs.clear()
        epoch = EpochProgress(_Sums(self.config.model.latent_size, self.runtime.device))
        if resumed is not None:
            self._load(resumed.weights)
            epoch = self._take_up(stage, progress, resumed)
        while progress.epoch < stage.max_epochs and not progress.converged:
            trained, kl_weight = self._train_epoch(stage, progress, epoch)
            began = time.monotonic()
            scores = self._validate(stage, progress, epoch)
            valid_seconds = time.monotonic() - began
            stage.policy.end_epoch(trained.kl)
            learning_rate, verdict = progress.plateau.learning_rate, None
            if not scores.finite:
                self._stop("the validation score", stage, progress)
            progress.epoch += 1
            if stage.policy.may_be_best(scores.kl.mean):
                verdict = progress.plateau.observe(stage.loss(scores))
            elif progress.best is not None:
                progress.best = replace(progress.best, passed_over=progress.best.passed_over + 1)
            if verdict is Verdict.IMPROVED:
                progress.best = Best(self._weights(), progress.epoch, kl_weight)
                if stage.name == "train":
                    self._write(lambda: self._export("best", progress.best.weights))
            elif verdict in (Verdict.DECAY, Verdict.STOP):
                self._load(progress.best.weights)
                load_optimizer_state(self.engine, {})
                stage.policy.weight = progress.best.kl_weight
                progress.converged = verdict is Verdict.STOP
            said = "not counted" if verdict is None else verdict.value
            record = self._record(stage, progress, kl_weight, learning_rate, trained, scores, valid_seconds, said)
            self._write(lambda: self._show(record))  # noqa: B023
            epoch = EpochProgress(_Sums(self.config.model.latent_size, self.runtime.device))
            self._save(stage, progress, epoch)
            if self.caller.waits:
                self.runtime.on_main(lambda: self.saver.wait())
            self.caller.after_epoch(record)
        best_epoch, passed_over = None, 0
        if progress.best is not None:
            self._load(progress.best.weights)
            best_epoch, passed_over = progress.best.epoch, progress.best.passed_over
        self.ended.append(StageEnd(stage.name, progress.epoch, progress.converged, best_epoch, passed_over))
        if stage.name == "pretrain":
            self._write(lambda: self._export("pretrained", self._weights()))

    def _take_up(self, stage: Stage, progress: StageProgress, resumed: Checkpoint) -> EpochProgress:
        """Put a stage where a checkpoint left it. Returns the epoch under way."""
        state = resumed.state
        progress.epoch, progress.converged = state.epoch, state.converged
        try:
            progress.plateau.load_state_dict(state.plateau)
            # 1, unless the caller lets a run go on at another rate.
            progress.plateau.learning_rate *= (
                self.config.optimizer.learning_rate / resumed.config.optimizer.learning_rate
            )
            stage.policy.load_state_dict(state.policy)
            if resumed.best_weights is not None:
                progress.best = Best(resumed.best_weights, **state.best)
        except (KeyError, TypeError):
            raise UserError(f"{self.run}: a checkpoint's state.json is not the state of a run") from None
        sums, rank = _Sums(self.config.model.latent_size, self.runtime.device), self.runtime.rank
        rows = resumed.ranks.get("sums")
        if rows is None or rows.shape != (resumed.world_size, *sums.row.shape):
            raise UserError(f"{self.run}: a checkpoint's ranks.safetensors is of another model")
        if resumed.world_size == self.runtime.world_size:
            sums.row.copy_(rows[rank])
            self.engine.load_own_state({name: kept[rank] for name, kept in resumed.ranks.items()})
        elif rank == 0:
            sums.row.copy_(rows.sum(dim=0))
        return EpochProgress(sums, state.batches, state.seconds)

    def _train_epoch(self, stage: Stage, progress: StageProgress, epoch: EpochProgress) -> tuple[TrainEpoch, float]:
        """One pass over the training sentences, or what is left of it. Returns its means over all ranks, and γ at its
        end."""
        settings, number = self.config.optimizer, progress.epoch + 1
        lengths = self.corpus.train.lengths
        plan = training_plan(lengths, settings.batch_size, (self.config.seed, stage.number, number))
        learning_rate = progress.plateau.learning_rate
        set_learning_rate(self.engine, learning_rate)
        every = self.config.kl.policy.interval if stage.name == "train" else None
        # The last interval of an epoch takes what is left, so that none is shorter than it should be.
        interval_ends = set() if every is None else {*range(every, len(plan) - every + 1, every), len(plan)}
        bad_step = self.no_bad_step
        began = time.monotonic() - epoch.seconds
        shown = sum(len(sentences) for sentences in plan[: epoch.batches])
        seen = shown
        self.engine.module.train()
        self.looks.pace()
        with Progress(f"{stage.name} {number}", len(lengths), self.runtime.is_main, shown) as bar:
            for sentences in plan[epoch.batches :]:
                self.step += 1
                stage.policy.start_step(epoch.batches / len(plan))
                epoch.batches += 1
                norm = self._step(stage, (number, epoch.batches), sentences, epoch.sums)
                if settings.on_nan == "stop":
                    bad_step = torch.where(torch.isfinite(norm) | bad_step.isfinite(), bad_step, self.step)
                seen += len(sentences)
                last, interval_end = epoch.batches == len(plan), epoch.batches in interval_ends
                due = self.looks.due()
                wanted = (epoch.save or epoch.stop) and self.engine.together
                if due or last or interval_end or wanted or self._scheduled():
                    look = self._look(bad_step)
                    if look.bad_step is not None:
                        batch = plan[epoch.batches - 1 - (self.step - look.bad_step)]
                        self._stop_at(look.bad_step, batch, stage, progress)
                    if interval_end:
                        stage.policy.end_interval(epoch.sums.end_interval(self.runtime))
                    epoch.seconds = time.monotonic() - began
                    # Once the last batch is trained, its validation and a checkpoint of both follow.
                    self._act(look, stage, progress, epoch, save=not last)
                if bar.shown and (due or last):  # the look has waited for the device
                    bar.advance(seen - shown, γ=stage.policy.weight, **epoch.sums.running())
                    shown = seen
        self.engine.gather()
        epoch.seconds = time.monotonic() - began
        sentences, re, objective, *kl = self.runtime.sum(epoch.sums.totals.clone()).tolist()
        if sentences == 0:
            self._stop("every step", stage, progress)
        sentences, total = round(sentences), sum(kl) / sentences
        means = TrainEpoch(
            re=re / sentences,
            kl=total,
            neg_elbo=re / sentences + total,
            objective=objective / sentences,
            kl_per_dimension=tuple(value / sentences for value in kl),
            sentences=sentences,
            skipped=len(lengths) - sentences,
            seconds=epoch.seconds,
        )
        return means, stage.policy.weight

    def _scheduled(self) -> bool:
        """Whether this step is one of those to be saved."""
        every = self.config.checkpoint.every_steps
        return every is not None and self.step % every == 0

    def _look(self, bad_step: torch.Tensor) -> Look:
        """Look up with the other ranks.

        Raises:
            UserError: something could not be written; another start goes on with the run.
        """
        if not self.runtime.is_main:
            look = self.looks.look(bad_step)
        else:
            minutes = self.config.checkpoint.every_minutes
            due = minutes is not None and time.monotonic() - self.saved > 60 * minutes
            failed = self.failure is not None or self.saver.failed
            look = self.looks.look(bad_step, self.hold.lost, failed, due)
        if look.overtaken or look.failed:
            if not self.runtime.is_main:
                raise PeerError("the main process tells why")
            self.hold.check()
            self.saver.wait()
            raise self.failure
        return look

    def _act(self, look: Look, stage: Stage, progress: StageProgress, epoch: EpochProgress, save: bool) -> None:
        """Save and stop, as a look or the schedule wants it; later, where the ranks' models are apart just now.

        Raises:
            InterruptedRun: a signal asked to stop.
        """
        epoch.save |= look.save or self._scheduled()
        epoch.stop |= look.stop
        if self.engine.together and (epoch.stop or (epoch.save and save)):
            self._save(stage, progress, epoch)
            epoch.save = False
        if epoch.stop and self.engine.together:
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        # All wait: launchers end the processes that are left once one has ended.
        self.runtime.on_main(lambda: self.saver.wait())
        raise InterruptedRun(f"{self.run}: interrupted at step {self.step:,} by {self.signals.asked or 'another rank'}")

    def _step(self, stage: Stage, place: tuple[int, int], sentences: np.ndarray, sums: _Sums) -> torch.Tensor:
        """One optimizer step on a global batch. Adds to ``sums``; returns the gradient's norm, still on the device."""
        settings, runtime = self.config.optimizer, self.runtime
        accelerator, micros = runtime.accelerator, settings.accumulation_steps
        parts = runtime.world_size * micros
        # The decoder's steps in the longest sentence of the global batch, which sets the shape of the draws.
        steps = int(self.corpus.train.lengths[sentences].max()) - 1
        batches = [
            collate(
                self.corpus.train,
                sentences,
                share(len(sentences), runtime.rank * micros + micro, parts),
                self.vocabulary.pad,
            )
            for micro in range(micros)
        ]
        batch_mean = None
        if stage.free_bits.needs_batch_mean and micros > 1:
            batch_mean = self._batch_mean_ahead(batches, len(sentences))
        whole = len(sentences) == settings.batch_size
        own = share(len(sentences), runtime.rank, runtime.world_size)
        if own.stop == own.start:
            own = batches[0].rows  # the dummy's
        noise = draws.training_noise(
            self.config.model, own, len(sentences), steps, runtime.device, self.config.seed, stage.name, *place
        )
        step_sums = []
        for batch in batches:
            # A dummy among sentences takes the first one's draws: it counts nothing.
            start = batch.rows.start - own.start if batch.count else 0
            drawn = noise.rows(slice(start, start + len(batch.tokens)))
            compute = self._micro_batch(stage, batch.count, parts, len(sentences), batch_mean)
            inputs = [
                self._on_device(batch.tokens), self._on_device(batch.lengths), *vars(drawn).values(),
                torch.full((), stage.policy.weight, dtype=torch.float64, device=runtime.device),
            ]  # fmt: skip
            with accelerator.accumulate(self.engine.module):
                if self.graphs is not None and whole:
                    step_sums.append(self.graphs(stage.name, compute, inputs))
                else:
                    step_sums.append(compute(inputs))
        norm = self.engine.step()
        sums.add(step_sums, torch.isfinite(norm))
        return norm

    def _micro_batch(
        self, stage: Stage, count: int, parts: int, global_batch: int, batch_mean: torch.Tensor | None
    ) -> Compute:
        """A forward and backward, as a function of tokens, lengths, the noise's tensors and γ, which returns a row of
        ``_Sums``.

        Args:
            count: sentences that count, the first ones.
            parts: into which the global batch is cut.
            global_batch: its sentences.
            batch_mean: where the objective needs it and this micro-batch is not all of the rank's share.
        """

        def compute(inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
            tokens, lengths, *noise, kl_weight = inputs
            re, mean, log_variance = self.engine.module(tokens, lengths, Noise(*noise))
            # A dummy sentence is left out by selection: 0 × its value would carry a NaN.
            re, kl = re[:count], kl_per_dimension(mean, log_variance)[:count]
            bound = batch_mean
            if stage.free_bits.needs_batch_mean and bound is None:
                bound = self.runtime.sum(kl.detach().sum(dim=0)) / global_batch
            kl_term = stage.free_bits.shares(kl, bound)
            loss = (re + kl_weight * kl_term).sum()
            # Engines average over ranks, and over micro-batches: this leaves the mean over the global batch. A loss
            # that is not finite makes every gradient so, and with it the norm that all ranks see.
            scale = torch.where(loss.detach().isfinite(), parts / global_batch, math.nan)
            self.runtime.accelerator.backward(loss * scale)
            with torch.no_grad():
                return torch.cat([torch.stack([torch.full_like(loss, count), re.sum(), loss]), kl.sum(dim=0)])

        return compute

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        if self.runtime.device.type == "cuda":
            # From pinned memory, which the host need not wait for.
            return values.pin_memory().to(self.runtime.device, non_blocking=True)
        return values

    @torch.no_grad()
    def _batch_mean_ahead(self, batches: list[Batch], global_batch: int) -> torch.Tensor:
        """The global batch's mean KL per dimension, which the first micro-batch's gradient needs: one collective."""
        device = self.runtime.device
        total = torch.zeros(self.config.model.latent_size, device=device)
        for batch in batches:
            _, *posterior = self.engine.module(self._on_device(batch.tokens), self._on_device(batch.lengths))
            total += kl_per_dimension(*posterior)[: batch.count].sum(dim=0)
        return self.runtime.sum(total) / global_batch

    def _stop_at(self, step: int, batch: np.ndarray, stage: Stage, progress: StageProgress) -> NoReturn:
        """Stop for a step that was not finite, and say what was in its batch."""
        lengths = self.corpus.train.lengths[batch]
        shown = ", ".join(map(str, batch[:8].tolist())) + (" …" if len(batch) > 8 else "")
        content = {
            "step": step,
            "stage": stage.name,
            "epoch": progress.epoch + 1,
            "kl_weight": stage.policy.weight,
            "learning_rate": progress.plateau.learning_rate,
            "sentences": batch.tolist(),
            "lengths": lengths.tolist(),
        }
        self._write(lambda: write_json(self.run / "not_finite.json", content))
        self._stop(
            f"the loss or gradient of step {step}, on sentences {shown} of {lengths.min()} to {lengths.max()} tokens"
            " (not_finite.json has all),",
            stage,
            progress,
            ", optimizer.on_nan=skip goes on without such steps",
        )

    def _stop(self, what: str, stage: Stage, progress: StageProgress, advice: str = "") -> NoReturn:
        if not self.runtime.is_main:
            raise PeerError("the main process tells why")
        with contextlib.suppress(UserError):
            self.saver.wait()
        last = next(reversed(checkpoint.list_checkpoints(self.run)), None)
        raise UserError(
            f"{self.run}: {what} is not finite ({stage.name}, epoch {progress.epoch + 1}), at γ"
            f" {stage.policy.weight:.4g} and learning rate {progress.plateau.learning_rate:.4g}; the last good"
            f" checkpoint is {last or 'none yet'}; a lower optimizer.learning_rate or optimizer.clip_norm may mend"
            f" it{advice}"
        )

    def _validate(self, stage: Stage, progress: StageProgress, epoch: EpochProgress) -> Scores:
        try:
            samples = 0 if stage.autoencoder else self.config.evaluation.validation_samples
            return self._evaluate("validate", self.corpus.valid, epoch, samples)[0]
        except InterruptedRun:
            self._save(stage, progress, epoch)
            self._interrupt()

    def _evaluate(
        self, title: str, sentences: Sentences, epoch: EpochProgress | None = None, importance_samples: int = 0
    ) -> tuple[Scores, SentenceScores]:
        """Score sentences, looking up with the other ranks between batches.

        Raises:
            InterruptedRun: a signal asked to stop.
        """

        def between_batches(done: int) -> None:
            bar.advance(done)
            if self.looks.due() and (self._look(self.no_bad_step).stop or (epoch is not None and epoch.stop)):
                raise InterruptedRun

        self.looks.pace()
        with Progress(title, len(sentences), self.runtime.is_main) as bar:
            settings = self.config.evaluation
            return score(self.model, sentences, settings, self.runtime, importance_samples, between_batches)

    def _floor(self, sentences: Sentences) -> Floor:
        with Progress("floor", len(sentences), self.runtime.is_main) as bar:
            return floor(sentences, self.vocabulary, self.runtime, bar.advance)

    # -- What a run leaves ---------------------------------------------------------------------------------------------

    def finish(self) -> Results:
        """Score the test sentences with the weights that the last stage ended with, and close the run's folder."""
        test = self.corpus.test
        self._write(lambda: self._export("best", self._weights()))
        samples = 0 if self.config.autoencoder else self.config.evaluation.importance_samples
        try:
            scores, each = self._evaluate("evaluate", test, importance_samples=samples)
        except InterruptedRun:
            self._interrupt()  # the end of the last stage is saved
        if not scores.finite:
            raise UserError(
                f"{self.run}: a score of the test sentences is not finite; see metrics.jsonl for how it came"
            )
        results = Results(
            split="test",
            scores=scores,
            floor=self._floor(test) if self.config.data.path == CAPTIONS else None,
            stages=tuple(self.ended),
            vocabulary=self.vocabulary.fingerprint,
            vocabulary_size=len(self.vocabulary),
            data=self.corpus.fingerprint,
            world_size=self.runtime.world_size,
            start=self.start,
            unknown=self.corpus.unknown["test"],
            latent=scores.latent(self.config, self.config.last_stage),
        )
        self._write(lambda: self._conclude(results, each))
        self._look(self.no_bad_step)
        return results

    def _conclude(self, results: Results, each: SentenceScores) -> None:
        self.saver.wait()
        self.saver.close()
        self.tracker.close()
        save_sentence_scores(self.run, each, self.hold.check)
        save_results(self.run, results, self.hold.check)
        tracking.write_status(self.run, "finished", start=self.start, latent=results.latent)

    def _write(self, action: Callable[[], None]) -> None:
        """Write to the run's folder, on the main process. Of a failure all ranks learn when they next look up."""
        if self.runtime.is_main:
            try:
                with writing(self.run):
                    action()
            except UserError as error:
                self.failure = self.failure or error

    def _load(self, weights: Weights) -> None:
        self.model.load_state_dict(weights)
        self.engine.scatter()

    def _weights(self) -> Weights:
        """Copies in the CPU's memory: training goes on, and these are kept and written."""
        return _copies(self.model.state_dict())

    def _export(self, name: str, weights: Weights) -> None:
        # A later start sweeps away what this one had begun when it came: what is begun after that, the check sees.
        checkpoint.export(
            self.run / name, weights, self.config, self.vocabulary, self.start, self.step, self.hold.check
        )

    def _save(self, stage: Stage, progress: StageProgress, epoch: EpochProgress) -> None:
        """Save the run as it stands: every rank takes part, the main process writes, in a thread of its own."""
        began = time.monotonic()
        self.engine.gather()
        optimizer = optimizer_state(self.engine, dict(self.model.named_parameters()))
        own = {"sums": epoch.sums.row, "step": torch.tensor(self.step, device=self.runtime.device)}
        ranks = {name: self.runtime.gather(value) for name, value in (own | self.engine.own_state()).items()}
        self.saved = time.monotonic()
        if not self.runtime.is_main:
            return
        assert (ranks["step"] == self.step).all(), "ranks save different steps"
        state = RunState(
            stage=stage.name,
            epoch=progress.epoch,
            batches=epoch.batches,
            seconds=epoch.seconds,
            step=self.step,
            converged=progress.converged,
            plateau=progress.plateau.state_dict(),
            policy=stage.policy.state_dict(),
            best=None
            if progress.best is None
            else {name: value for name, value in vars(progress.best).items() if name != "weights"},
            ended=[asdict(end) for end in self.ended],
            data=self.corpus.fingerprint,
        )
        best = None if progress.best is None else progress.best.weights
        saved = Checkpoint(
            self._weights(), best, _copies(optimizer), ranks, state, self.config, self.runtime.world_size
        )
        self._write(lambda: self.saver.save(saved))
        self.saves += 1
        self.stall += time.monotonic() - began

    def _record(
        self,
        stage: Stage,
        progress: StageProgress,
        kl_weight: float,
        learning_rate: float,
        trained: TrainEpoch,
        scores: Scores,
        valid_seconds: float,
        verdict: str,
    ) -> EpochRecord:
        saving = Saving(self.saves, self.stall, 0.0 if self.saver is None else self.saver.write_seconds)
        self.saves, self.stall = 0, 0.0
        if self.saver is not None:
            self.saver.write_seconds = 0.0
        return EpochRecord(
            stage.name, progress.epoch, self.step, kl_weight, learning_rate, trained, scores, valid_seconds, verdict,
            saving, self.start, scores.latent(self.config, stage.name),
        )  # fmt: skip

    def _show(self, record: EpochRecord) -> None:
        if self.tracker.epoch(record):
            tracking.write_status(self.run, "running", start=self.start, latent=record.latent)
        self._show_sentences()
        self.tracker.flush()

    def _show_sentences(self) -> None:
        count = self.config.evaluation.samples
        if count == 0:
            return
        self.model.eval()
        greedy = generation.Decoding(max_tokens=int(self.corpus.train.lengths.max()))
        z = generation.prior_draws(self.model, count, self.config.seed)
        line = generation.interpolation(z[0], z[-1], count)
        self.tracker.sentences("prior samples", generation.decode(self.model, z, self.vocabulary, greedy), self.step)
        self.tracker.sentences("interpolation", generation.decode(self.model, line, self.vocabulary, greedy), self.step)


def _copies(tensors: Weights) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


class _Sums:
    """What an epoch adds up over this rank's sentences, in float64 on the device, as one row: sentences, RE, objective
    and KL of each dimension; then sentences and KL as they stood when the last interval of the γ controller ended."""

    def __init__(self, latent_size: int, device: torch.device):
        self.row = torch.zeros(3 + latent_size + 2, dtype=torch.float64, device=device)
        self.totals, self._mark = self.row[:-2], self.row[-2:]

    def add(self, parts: list[torch.Tensor], finite: torch.Tensor) -> None:
        """Add a step's micro-batches, or leave all of them out."""
        for part in parts:
            self.totals += torch.where(finite, part, 0)

    def end_interval(self, runtime: Runtime) -> float:
        """Mean KL over all ranks since the last call: one collective."""
        now = torch.stack([self.totals[0], self.totals[3:].sum()])
        sentences, kl = runtime.sum(now - self._mark).tolist()
        self._mark.copy_(now)
        return kl / sentences if sentences else math.nan

    def running(self) -> dict[str, float]:
        """RE and KL so far, of this rank."""
        sentences, re, _, *kl = self.totals.tolist()
        return {"RE": re / max(sentences, 1), "KL": sum(kl) / max(sentences, 1)}


if __name__ == "__main__":
    sys.exit(main())
