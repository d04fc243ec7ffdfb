"""The trainer: stages, epochs, validation, checkpoints and the results of a run."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from distvae.config.schema import CAPTIONS, Config
from distvae.data.batches import share
from distvae.data.sentences import Sentences
from distvae.distributed.device import peak_memory
from distvae.distributed.engines import make_engine
from distvae.distributed.engines.base import load_optimizer_state, set_learning_rate
from distvae.distributed.runtime import Runtime
from distvae.distributed.sync import Agreement, RankSync
from distvae.evaluation.scores import Floor, Scores, SentenceScores
from distvae.evaluation.scoring import floor, score
from distvae.methods.objective import LOSS
from distvae.model import draws
from distvae.model.vae import initialise, model_of
from distvae.runs.checkpoints import Checkpoint, Weights
from distvae.runs.records import EpochRecord, TrainEpoch
from distvae.runs.results import Results, StageEnd
from distvae.system.errors import UserError
from distvae.system.progress_bar import Log, Progress
from distvae.system.signals import InterruptedRun, Signals
from distvae.training.caller import Caller
from distvae.training.not_finite import NotFinite
from distvae.training.outlook import Outlook
from distvae.training.plateau import Plateau, Verdict
from distvae.training.points import Points
from distvae.training.preparation import introduce, load_resumed, prepare_corpus, pretrained_encoder
from distvae.training.samples import sample_sentences
from distvae.training.stages import Best, EpochProgress, Stage, StageProgress, stages_of
from distvae.training.state import copies, gather_state, restore, run_state
from distvae.training.step import Sums, TrainStep, graphed_steps
from distvae.training.writer import NoWriter


class Trainer:
    """Trains a run from its opening to its results. Every rank calls the same methods.

    Args:
        attempt: number of this attempt.
        resume_from: folder of the checkpoint to resume from.
        signals: may ask the run to stop.
        writer: writes the run's folder on the main process.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        runtime: Runtime,
        attempt: int,
        resume_from: Path | None,
        signals: Signals,
        writer: NoWriter,
        caller: Caller,
    ):
        self.config, self.run, self.runtime, self.caller = config, run, runtime, caller
        self.attempt, self.signals, self.writer = attempt, signals, writer
        self.corpus = prepare_corpus(config, run, runtime)
        self.not_finite = NotFinite(run, runtime, writer, self.corpus.train)
        self.vocabulary = self.corpus.vocabulary
        self.step = 0
        self.ended: list[StageEnd] = []

        self.model = model_of(config, len(self.vocabulary), self.vocabulary.pad, self.vocabulary.unknown)
        initialise(self.model, config.model, draws.generator("cpu", config.seed, "initial weights"))
        self.resumed: Checkpoint | None = None
        if resume_from is not None:
            self.resumed, self.ended = load_resumed(resume_from, self.model, runtime.is_main)
            self.step = self.resumed.state.step
        elif config.pretrained is not None:
            encoder = pretrained_encoder(config, config.pretrained, self.vocabulary.fingerprint)
            self.model.encoder.load_state_dict(encoder)
        self.model.to(runtime.device)
        carries = config.kl.policy.needs_step_kl
        rows, apart = config.speed.embedding_gradients, config.inference.training.apart
        self.engine = make_engine(runtime, self.model, config.optimizer, rows, carries, apart)
        graphs = None
        if config.speed.cuda_graphs:
            graphs = graphed_steps(runtime, list(self.model.parameters()), config.optimizer.accumulation_steps)
        self.train_step = TrainStep(runtime, self.engine, config, self.vocabulary.pad, graphs)

        self.rank_sync = RankSync(runtime, signals)
        self.no_bad_step = torch.full((), math.inf, dtype=torch.float64, device=runtime.device)
        self.saved = time.monotonic()
        self.stages = stages_of(config, runtime.device)
        self.outlook, self.log = Outlook(self.stages), Log("stdout")
        runtime.on_main(lambda: self.writer.begin(self.resumed, self.vocabulary))
        if runtime.is_main:
            introduce(config, run, runtime, self.corpus, self.model)

    # -- Stages --------------------------------------------------------------------------------------------------------

    def run_stages(self) -> None:
        """Train every stage that has not ended, each from the best weights of the one before."""
        keep_encoder = self.config.pretrained is not None
        for stage in self.stages:
            resumed = self.resumed if self.resumed and self.resumed.state.stage == stage.name else None
            if any(end.stage == stage.name for end in self.ended) and resumed is None:
                continue
            if resumed is None and keep_encoder:
                generator = draws.generator("cpu", self.config.seed, "decoder reset")
                initialise(self.model.decoder, self.config.model, generator)
                self.engine.scatter()
            self._run_stage(stage, resumed)
            keep_encoder = True

    def _run_stage(self, stage: Stage, resumed: Checkpoint | None) -> None:
        progress = StageProgress(Plateau(self.config.plateau, self.config.optimizer.learning_rate))
        load_optimizer_state(self.engine, {} if resumed is None else resumed.optimizer)
        self.train_step.reset()
        epoch = EpochProgress(self._sums())
        if resumed is not None:
            self._load(resumed.weights)
            epoch = restore(stage, progress, resumed, self.config, self.runtime, self.engine)
        while progress.epoch < stage.max_epochs and not progress.converged:
            epoch = self._run_epoch(stage, progress, epoch)
        best_epoch, passed_over = None, 0
        if progress.best is not None:
            self._load(progress.best.weights)
            best_epoch, passed_over = progress.best.epoch, progress.best.passed_over
        self.ended.append(StageEnd(stage.name, progress.epoch, progress.converged, best_epoch, passed_over))
        if stage.name == "pretrain":
            self.writer.export("pretrained", self._weights(), self.step)

    def _run_epoch(self, stage: Stage, progress: StageProgress, epoch: EpochProgress) -> EpochProgress:
        """Train an epoch, validate, apply the plateau rule, record and save. Return the next epoch."""
        trained, kl_weight = self._train_epoch(stage, progress, epoch)
        began = time.monotonic()
        scores = self._validate(stage, progress, epoch)
        valid_seconds = time.monotonic() - began
        self.outlook.end_epoch(stage, epoch.seconds + valid_seconds)
        latent = scores.latent(self.config, stage.name)
        stage.objective.gamma.end_epoch(trained.kl, None if latent is None else latent.state)
        learning_rate = progress.plateau.learning_rate
        if not scores.finite:
            self.not_finite.stop("the validation score", stage, progress)
        encoder_steps = epoch.encoder_steps if stage.turns.aggressive else None
        stage.turns.end_epoch(scores.mutual_information.mean)
        progress.epoch += 1
        verdict = self._judge(stage, progress, scores, kl_weight)
        record = EpochRecord(
            stage.name, progress.epoch, self.step, kl_weight, learning_rate, trained, scores, valid_seconds,
            "not counted" if verdict is None else verdict.value,
            self.writer.saving(), self.attempt, latent, encoder_steps,
            epoch.norms.mean, peak_memory(self.runtime.device),
        )  # fmt: skip
        longest = self.corpus.train.longest
        self.writer.record(record, lambda: sample_sentences(self.model, self.vocabulary, self.config, longest))
        following = EpochProgress(self._sums())
        self._save(stage, progress, following)
        if self.caller.waits:
            self.runtime.on_main(self.writer.wait)
        self.caller.after_epoch(record)
        return following

    def _judge(self, stage: Stage, progress: StageProgress, scores: Scores, kl_weight: float) -> Verdict | None:
        """Apply the plateau rule to an epoch that may be the best; return None if it may not."""
        best = progress.best
        if not stage.objective.gamma.may_be_best(scores.kl.mean):
            progress.best = None if best is None else best.passed()
            return None
        verdict = progress.plateau.observe(stage.loss(scores))
        if verdict is Verdict.IMPROVED:
            progress.best = Best(self._weights(), progress.epoch, kl_weight)
            if stage.name == "train":
                self.writer.export("best", progress.best.weights, self.step)
        elif best is not None and verdict in (Verdict.DECAY, Verdict.STOP):
            self._load(best.weights)
            load_optimizer_state(self.engine, {})
            progress.warmed = 0
            stage.objective.gamma.return_to(best.kl_weight)
            progress.converged = verdict is Verdict.STOP
        return verdict

    # -- Epochs --------------------------------------------------------------------------------------------------------

    def _train_epoch(self, stage: Stage, progress: StageProgress, epoch: EpochProgress) -> tuple[TrainEpoch, float]:
        """Train the rest of an epoch. Returns its means over all ranks, and γ at its end."""
        settings, number, gamma = self.config.optimizer, progress.epoch + 1, stage.objective.gamma
        sentences, turns, draw = self.corpus.train, stage.turns, (self.config.seed, stage.number, number)
        plan = sentences.plan(settings.batch_size, draw)
        every = self.config.kl.policy.interval if stage.name == "train" else None
        # The last interval of an epoch also takes the remainder, so that no interval is too short.
        interval_ends = range(0) if every is None else range(every, len(plan) - every + 1, every)
        bad_step = self.no_bad_step
        unchecked: list[np.ndarray] = []  # batches since the last sync
        norms: list[torch.Tensor] = []  # of their gradients
        points = Points(epoch)
        began = time.monotonic() - epoch.seconds
        shown = seen = plan.sentences(epoch.batches)
        self.engine.module.train()
        self.rank_sync.reset_pace()
        title = f"{stage.name} {number}/{stage.max_epochs}"
        with Progress(title, len(sentences), self.runtime.is_main, shown, self.log) as bar:
            while epoch.batches < len(plan):
                self.step += 1
                progress.warmed += 1
                learning_rate = progress.plateau.learning_rate * settings.warm_up(progress.warmed)
                set_learning_rate(self.engine, learning_rate)
                gamma.start_step(epoch.batches / len(plan))
                part, batch = turns.part, plan[turns.batch(epoch.batches, plan.group(epoch.batches), *draw)]
                key: tuple[str | int, ...] = (stage.name, number, epoch.batches + 1)
                if part == "encoder":
                    key += (turns.steps + 1,)
                sums, norm = self.train_step(sentences, batch, key, stage.objective, part)
                if part == "encoder":
                    epoch.encoder_steps += 1
                    own = sentences.lengths_of(batch[share(len(batch), self.runtime.rank, self.runtime.world_size)])
                    tokens = torch.isfinite(norm) * int(own.sum() - len(own))
                    turns.encoder_moved(sums[:, LOSS].sum(), tokens, self.runtime.sum)
                else:
                    epoch.batches += 1
                    epoch.sums.add(sums)
                    seen += len(batch)
                    turns.decoder_moved()
                unchecked.append(batch)
                norms.append(norm)
                if settings.on_nan == "stop":
                    bad_step = torch.where(torch.isfinite(norm) | bad_step.isfinite(), bad_step, self.step)
                last = epoch.batches == len(plan)
                interval_end = part != "encoder" and every is not None and (last or epoch.batches in interval_ends)
                due = self.rank_sync.due()
                wanted = (epoch.save or epoch.stop) and self.engine.together
                if due or last or interval_end or wanted or self._scheduled():
                    agreed = self._sync(bad_step)
                    if agreed.bad_step is not None:
                        bad = unchecked[agreed.bad_step - self.step - 1]
                        self.not_finite.stop_at(agreed.bad_step, bad, stage, progress)
                    unchecked.clear()
                    epoch.norms.add(norms)
                    if interval_end:
                        gamma.end_interval(epoch.sums.end_interval(self.runtime))
                    if not last:
                        self.writer.point(self.step, partial(points.take, gamma, learning_rate))
                    epoch.seconds = time.monotonic() - began
                    # After the last batch comes validation, and then a checkpoint of both.
                    self._act(agreed, stage, progress, epoch, save=not last)
                if (due or last) and bar.due:  # the sync has waited for the device
                    left = self.outlook.left(stage, progress.epoch, epoch.batches / len(plan), epoch.seconds)
                    bar.advance(seen - shown, left, γ=gamma.value, **epoch.sums.running())
                    shown = seen
        self.engine.gather()
        epoch.seconds = time.monotonic() - began
        means = epoch.sums.means(self.runtime, len(sentences), epoch.seconds)
        if means is None:
            self.not_finite.stop("every step", stage, progress)
        return means, gamma.value

    def _scheduled(self) -> bool:
        """Return whether ``checkpoint.every_steps`` asks to save this step."""
        every = self.config.checkpoint.every_steps
        return every is not None and self.step % every == 0

    def _sync(self, bad_step: torch.Tensor) -> Agreement:
        """Synchronise the ranks.

        Raises:
            UserError: a write has failed, or another attempt has taken over the run.
        """
        minutes = self.config.checkpoint.every_minutes
        due = self.runtime.is_main and minutes is not None and time.monotonic() - self.saved > 60 * minutes
        agreed = self.rank_sync.sync(bad_step, self.writer.overtaken, self.writer.failed, due)
        if agreed.overtaken or agreed.failed:
            self.writer.raise_failure()
        return agreed

    def _act(self, agreed: Agreement, stage: Stage, progress: StageProgress, epoch: EpochProgress, save: bool) -> None:
        """Save and stop if agreed or scheduled; later if the ranks hold different models at this step.

        Raises:
            InterruptedRun: a signal asked to stop.
        """
        epoch.save |= agreed.save or self._scheduled()
        epoch.stop |= agreed.stop
        if self.engine.together and (epoch.stop or (epoch.save and save)):
            self._save(stage, progress, epoch)
            epoch.save = False
        if epoch.stop and self.engine.together:
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        # All ranks wait, because launchers end the other processes once one has ended.
        self.runtime.on_main(self.writer.wait)
        raise InterruptedRun(f"{self.run}: interrupted at step {self.step:,} by {self.signals.asked or 'another rank'}")

    # -- Evaluation ----------------------------------------------------------------------------------------------------

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
        """Score sentences, and sync the ranks between batches.

        Raises:
            InterruptedRun: a signal asked to stop.
        """

        def between_batches(done: int) -> None:
            bar.advance(done)
            if self.rank_sync.due() and (self._sync(self.no_bad_step).stop or (epoch is not None and epoch.stop)):
                raise InterruptedRun

        self.rank_sync.reset_pace()
        with Progress(title, len(sentences), self.runtime.is_main, log=self.log) as bar:
            settings = self.config.evaluation
            return score(self.model, sentences, settings, self.runtime, importance_samples, between_batches)

    def _floor(self, sentences: Sentences) -> Floor:
        with Progress("floor", len(sentences), self.runtime.is_main, log=self.log) as bar:
            return floor(sentences, self.vocabulary, self.runtime, bar.advance)

    def finish(self) -> Results:
        """Score the test sentences with the weights of the last stage, and close the run's folder."""
        test = self.corpus.test
        self.writer.export("best", self._weights(), self.step)
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
            start=self.attempt,
            unknown=self.corpus.unknown["test"],
            latent=scores.latent(self.config, self.config.last_stage),
            tokenizer=self.vocabulary.tokenizer,
        )
        self.writer.conclude(results, each, self.corpus.labels.get("test"))
        self._sync(self.no_bad_step)
        return results

    # -- Weights and checkpoints ---------------------------------------------------------------------------------------

    def _sums(self) -> Sums:
        return Sums(self.config.model.latent_size, self.runtime.device)

    def _load(self, weights: Weights) -> None:
        self.model.load_state_dict(weights)
        self.engine.scatter()

    def _weights(self) -> Weights:
        """Return copies in CPU memory, which training does not change."""
        return copies(self.model.state_dict())

    def _save(self, stage: Stage, progress: StageProgress, epoch: EpochProgress) -> None:
        """Save a checkpoint: every rank takes part, and the main process writes it in a thread."""
        began = time.monotonic()
        optimizer, ranks = gather_state(self.runtime, self.engine, self.model, stage, epoch, self.step)
        self.saved = time.monotonic()
        if self.runtime.is_main:
            state = run_state(stage, progress, epoch, self.step, self.ended, self.corpus.fingerprint)
            best = None if progress.best is None else progress.best.weights
            world_size = self.runtime.world_size
            saved = Checkpoint(self._weights(), best, copies(optimizer), ranks, state, self.config, world_size)
            self.writer.save(saved, began)
