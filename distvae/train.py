"""The training program: ``accelerate launch distvae/train.py CONFIG [key=value …]``. Read it from the top down.

Config → corpus → model → prepare → resume → stages → evaluate.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch

from distvae import checkpoint, corpus, draws, generation, report, tracking
from distvae.batches import Batch, collate, share, training_plan
from distvae.checkpoint import Checkpoint, RunState, Weights
from distvae.config import CAPTIONS, Config, ConfigError, dump_config, flatten, load_config
from distvae.corpus import Corpus
from distvae.engine import load_optimizer_state, make_engine, optimizer_state, set_learning_rate
from distvae.errors import PeerError, UserError, tell
from distvae.evaluation import Scores, evaluate, floor
from distvae.kl_control import POLICIES, KLPolicy, Linear
from distvae.model import TextVAE, initialise
from distvae.objective import FREE_BITS, FreeBits, kl_per_dimension
from distvae.plateau import Plateau, Verdict
from distvae.report import Results, StageEnd
from distvae.runtime import Runtime
from distvae.tracking import EpochRecord, Progress, Tracker, TrainEpoch

# Files of a run's folder that say what was asked for, not what came of it.
DESCRIPTIONS = ("config.yaml", "environment.json", "vocabulary.json")

# Keys that may differ when a run goes on: the first say where things lie, the others how far and what to look at.
NO_MATTER = {
    "run", "resume", "cpu_threads", "data.cache", "data.workers", "evaluation.batch_size", "evaluation.memory_mb",
}  # fmt: skip
MAY_CHANGE = {"train.max_epochs", "evaluation.importance_samples", "evaluation.samples"}

# Steps between looks at what the device has found: each look waits for it.
LOOK_EVERY = 20


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 when the run has finished, 2 on bad input, which gets one line."""
    parser = argparse.ArgumentParser(prog="distvae/train.py", description="Train an LSTM-VAE of sentences.")
    parser.add_argument("config", help="a YAML file, such as configs/demo/pt_kla_sfb.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as kl.target_rate=6 run=runs/six")
    options = parser.parse_args(arguments)
    # A launcher that is told to end tells its processes so: they end as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        train(load_config(options.config, options.overrides))
    except UserError as error:
        if isinstance(error, ConfigError) and error.run is not None and not holds_run(Path(error.run)):
            with contextlib.suppress(OSError):  # `run` may be what is wrong
                tracking.write_status(Path(error.run), "failed", str(error))
        tell(error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def train(config: Config) -> Results:
    """Run a config to its end: every process of the run calls this.

    Raises:
        UserError: bad input, or numbers that are no longer finite; ``status.json`` says so too.
    """
    runtime = Runtime(config.optimizer, config.communication, config.cpu_threads)
    # The launcher may have set the precision; what a run used stands in its config.
    config = replace(config, optimizer=replace(config.optimizer, mixed_precision=runtime.mixed_precision))
    try:
        results = carry_out(config, Path(config.run), runtime)
    except UserError:
        runtime.close()
        raise
    # After any other error the peers may be waiting in a collective: only the end of this process tells them.
    runtime.close()
    return results


def carry_out(config: Config, run: Path, runtime: Runtime) -> Results:
    """Train and score, unless the run has finished already."""
    results = runtime.on_main(lambda: open_run(config, run, runtime.processes))
    if results is None:
        try:
            trainer = Trainer(config, run, runtime)
            trainer.run_stages()
            results = trainer.finish()
        except BaseException as error:
            if runtime.is_main:
                interrupted = isinstance(error, KeyboardInterrupt)
                state, reason = ("interrupted", None) if interrupted else ("failed", str(error))
                tracking.write_status(run, state, reason)
            raise
    if runtime.is_main:
        report.show({run.name: results})
    return results


def holds_run(run: Path) -> bool:
    """Whether there is anything in ``run`` that a new run would spoil: more than word of a start that failed."""
    return run.is_dir() and any(path.name not in ("status.json", *DESCRIPTIONS) for path in run.iterdir())


def open_run(config: Config, run: Path, processes: str) -> Results | None:
    """Make the run's folder, or see that the run can go on in it. Returns the results of one that has finished.

    Raises:
        UserError: it holds a run that this config does not continue.
    """
    if holds_run(run):
        if config.resume == "never":
            raise UserError(
                f"{run}: a run is there already; go on with it by resume=auto, or name another folder by run=FOLDER"
            )
        started = dict(flatten(load_config(run / "config.yaml")))
        changed = {key: value for key, value in flatten(config) if started[key] != value and key not in NO_MATTER}
        differing = [
            f"{key} ({started[key]} there, {value} here)" for key, value in changed.items() if key not in MAY_CHANGE
        ]
        if differing:
            raise UserError(
                f"{run}: cannot go on under another config: {', '.join(differing)}; name another run=FOLDER"
            )
        if not changed and (run / "results.json").exists():
            return report.load_results(run)
        check_sentences(config, run)
        # A run that goes on has no results until it ends again.
        (run / "results.json").unlink(missing_ok=True)
    try:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(run / "config.yaml", dump_config(config))
    except OSError as error:
        raise UserError(f"run={run}: cannot be a run's folder: {error.strerror}") from None
    checkpoint.write_json(run / "environment.json", tracking.environment(processes))
    tracking.write_status(run, "running")
    return None


def check_sentences(config: Config, run: Path) -> None:
    """See that a checkpoint and the sentences that it would go on with belong together, before anything is written.

    Raises:
        UserError: the sentences, or how they become ids, have changed since.
    """
    folder = checkpoint.latest_checkpoint(run)
    if folder is None:
        return
    there = checkpoint.load_state(folder).data
    here = corpus.prepare(config.data, progress=sys.stderr.isatty()).name
    if there != here:
        raise UserError(
            f"{folder}: was trained on other sentences ({there}) than {config.data.path} holds now ({here}); name"
            " another run=FOLDER"
        )


@dataclass(frozen=True)
class Stage:
    """A stretch of training with a learning rate, counters and a best of its own."""

    name: str
    number: int
    max_epochs: int
    policy: KLPolicy
    free_bits: FreeBits
    autoencoder: bool  # γ is 0 for good: judged by RE alone

    def loss(self, scores: Scores) -> float:
        """The validation loss: −ELBO at weight 1 whatever γ is."""
        return scores.re.mean if self.autoencoder else scores.neg_elbo.mean


def stages_of(config: Config) -> list[Stage]:
    """The stages a config asks for (paper, Algorithm 1)."""
    stages = []
    if config.pretrain.max_epochs and config.pretrained is None:
        stages.append(Stage("pretrain", 0, config.pretrain.max_epochs, Linear(0.0), FREE_BITS["none"], True))
    if config.train.max_epochs:
        kl = config.kl
        autoencoder = kl.policy in ("constant", "linear") and kl.weight == 0
        policy, free_bits = POLICIES[kl.policy](kl), FREE_BITS[kl.free_bits]
        stages.append(Stage("train", 1, config.train.max_epochs, policy, free_bits, autoencoder))
    return stages


@dataclass(frozen=True)
class Best:
    """The best weights of a stage, and γ as they were trained."""

    weights: Weights
    epoch: int
    kl_weight: float


class Trainer:
    """A run between its opening and its results."""

    def __init__(self, config: Config, run: Path, runtime: Runtime):
        self.config, self.run, self.runtime = config, run, runtime
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

        self.model = TextVAE(config.model, len(self.vocabulary), self.vocabulary.pad, self.vocabulary.unknown)
        initialise(self.model, config.model, draws.generator("cpu", config.seed, "initial weights"))
        self.resumed = self._checkpoint()
        if config.pretrained is not None and self.resumed is None:
            self.model.encoder.load_state_dict(self._pretrained_encoder(config.pretrained))
        self.model.to(runtime.device)
        self.engine = make_engine(runtime, self.model, config.optimizer)

        self.tracker = Tracker(run, self.step) if runtime.is_main else None
        if runtime.is_main:
            self._introduce()

    # -- What a run starts from ----------------------------------------------------------------------------------------

    def _corpus(self) -> Corpus:
        folder = self.runtime.on_main(lambda: corpus.prepare(self.config.data, progress=sys.stderr.isatty()))
        sentences = corpus.load(folder)
        if self.runtime.is_main:
            sentences.vocabulary.save(self.run / "vocabulary.json")
            for note in sentences.notes:
                print(note)
        return sentences

    def _introduce(self) -> None:
        sizes = "/".join(f"{len(split):,}" for split in (self.corpus.train, self.corpus.valid, self.corpus.test))
        parameters = sum(p.numel() for p in self.model.parameters())
        if self.runtime.emulates_bf16:
            print("this CPU has no bfloat16 instructions: mixed_precision=bf16 is slower here than no")
        where = self.runtime.device.type
        if where == "cpu":
            threads = torch.get_num_threads()
            where = f"CPU, {threads} thread{'s' if threads > 1 else ''} each"
        print(
            f"{self.run}: {self.config.data.path}, {sizes} sentences, {len(self.vocabulary):,} tokens in the"
            f" vocabulary; {parameters / 1e6:.1f}M parameters; {self.runtime.processes} on {where}"
        )

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

    def _checkpoint(self) -> Checkpoint | None:
        folder = self.runtime.on_main(lambda: checkpoint.latest_checkpoint(self.run))
        if folder is None:
            return None
        found = checkpoint.load_checkpoint(folder)
        self.step = found.state.step
        self.ended = [StageEnd(**end) for end in found.state.ended]
        if self.runtime.is_main:
            print(f"going on from {folder}")
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
        plateau = Plateau(self.config.plateau, self.config.optimizer.learning_rate)
        best, epoch, converged = None, 0, False
        load_optimizer_state(self.engine, {} if resumed is None else resumed.optimizer)
        if resumed is not None:
            self._load(resumed.weights)
            state = resumed.state
            epoch, converged = state.epoch, state.converged
            plateau.load_state_dict(state.plateau)
            stage.policy.load_state_dict(state.policy)
            if resumed.best_weights is not None:
                best = Best(resumed.best_weights, **state.best)
        while epoch < stage.max_epochs and not converged:
            epoch += 1
            trained, kl_weight = self._train_epoch(stage, epoch, plateau.learning_rate)
            stage.policy.end_epoch(trained.kl)
            scores = self._validate(stage)
            learning_rate, verdict = plateau.learning_rate, None
            if not scores.finite:
                self._stop("the validation score", stage, epoch, learning_rate)
            if stage.policy.may_be_best(scores.kl.mean):
                verdict = plateau.observe(stage.loss(scores))
            if verdict is Verdict.IMPROVED:
                best = Best(self._weights(), epoch, kl_weight)
                if stage.name == "train" and self.runtime.is_main:
                    self._export("best", best.weights)
            elif verdict in (Verdict.DECAY, Verdict.STOP):
                self._load(best.weights)
                load_optimizer_state(self.engine, {})
                stage.policy.weight = best.kl_weight
                converged = verdict is Verdict.STOP
            known = optimizer_state(self.engine, dict(self.model.named_parameters()))
            if self.runtime.is_main:
                said = "not counted" if verdict is None else verdict.value
                record = EpochRecord(stage.name, epoch, self.step, kl_weight, learning_rate, trained, scores, said)
                self.tracker.epoch(record)
                self._show_sentences()
                self._save(stage, plateau, best, known, epoch, converged)
        if best is not None:
            self._load(best.weights)
        self.ended.append(StageEnd(stage.name, epoch, converged, None if best is None else best.epoch))
        if stage.name == "pretrain" and self.runtime.is_main:
            self._export("pretrained", self._weights())

    def _train_epoch(self, stage: Stage, epoch: int, learning_rate: float) -> tuple[TrainEpoch, float]:
        """One pass over the training sentences. Returns its sums, over all ranks, and γ at its end."""
        settings, runtime = self.config.optimizer, self.runtime
        lengths = self.corpus.train.lengths
        plan = training_plan(lengths, settings.batch_size, (self.config.seed, stage.number, epoch))
        set_learning_rate(self.engine, learning_rate)
        # RE, objective, and KL of each dimension, summed over this rank's sentences.
        sums = torch.zeros(2 + self.config.model.latent_size, dtype=torch.float64, device=runtime.device)
        interval = _Interval(sums[2:])
        every = self.config.kl.every_steps if stage.name == "train" else None
        # The last interval of an epoch takes what is left, so that none is shorter than it should be.
        interval_ends = set() if every is None else {*range(every, len(plan) - every + 1, every), len(plan)}
        first_bad = torch.full((), -1, device=runtime.device)
        started = looked = time.monotonic()
        seen = shown = 0
        self.engine.module.train()
        title = f"{stage.name} {epoch}"
        with Progress(title, len(lengths), runtime.is_main) as progress:
            for number, sentences in enumerate(plan, start=1):
                self.step += 1
                norm = self._step(stage, (epoch, number), sentences, sums)
                first_bad = torch.where((first_bad < 0) & ~torch.isfinite(norm), self.step, first_bad)
                seen += len(sentences)
                if number in interval_ends:
                    stage.policy.end_interval(interval.mean_kl(sums[2:], seen, runtime))
                if number % LOOK_EVERY == 0 or number == len(plan):
                    self._stop_if_bad(first_bad, stage, epoch, learning_rate)
                    if progress.shown and time.monotonic() - looked > 0.2:
                        looked = time.monotonic()
                        re, kl = float(sums[0]), float(sums[2:].sum())
                        share_seen = seen / runtime.world_size
                        progress.advance(seen - shown, RE=re / share_seen, KL=kl / share_seen, γ=stage.policy.weight)
                        shown = seen
        self.engine.gather()
        weight = stage.policy.weight
        re, objective, *kl = (runtime.sum(sums) / seen).tolist()
        seconds = time.monotonic() - started
        total = sum(kl)
        return TrainEpoch(re, total, re + total, objective, tuple(kl), seen, seconds), weight

    def _step(self, stage: Stage, place: tuple[int, int], sentences, sums: torch.Tensor) -> torch.Tensor:
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
        for batch in batches:
            with accelerator.accumulate(self.engine.module):
                noise = draws.training_noise(
                    self.config.model, batch.rows, len(sentences), steps, runtime.device,
                    self.config.seed, stage.name, *place,
                )  # fmt: skip
                re, mean, log_variance = self.engine.module(
                    batch.tokens.to(runtime.device), batch.lengths.to(runtime.device), noise
                )
                # A dummy sentence is left out by selection: 0 × its value would carry a NaN.
                re, kl = re[: batch.count], kl_per_dimension(mean, log_variance)[: batch.count]
                if stage.free_bits.needs_batch_mean and micros == 1:
                    batch_mean = runtime.sum(kl.detach().sum(dim=0)) / len(sentences)
                kl_term = stage.free_bits.shares(kl, batch_mean, self.config.kl.target_rate)
                loss = (re + stage.policy.weight * kl_term).sum()
                # Engines average over ranks, and over micro-batches: this leaves the mean over the global batch.
                accelerator.backward(loss * (parts / len(sentences)))
                with torch.no_grad():
                    sums += torch.cat([torch.stack([re.sum(), loss]), kl.sum(dim=0)])
        return self.engine.step()

    @torch.no_grad()
    def _batch_mean_ahead(self, batches: list[Batch], global_batch: int) -> torch.Tensor:
        """The global batch's mean KL per dimension, which the first micro-batch's gradient needs: one collective."""
        device = self.runtime.device
        total = torch.zeros(self.config.model.latent_size, device=device)
        for batch in batches:
            _, *posterior = self.engine.module(batch.tokens.to(device), batch.lengths.to(device))
            total += kl_per_dimension(*posterior)[: batch.count].sum(dim=0)
        return self.runtime.sum(total) / global_batch

    def _stop_if_bad(self, first_bad: torch.Tensor, stage: Stage, epoch: int, learning_rate: float) -> None:
        """A reduced gradient is the same on every rank, and so is what this finds; local SGD's has to be agreed on."""
        if self.config.communication.local_sgd_steps is not None:
            self.runtime.max(first_bad)
        step = int(first_bad)
        if step >= 0:
            self._stop(f"the gradient of step {step}", stage, epoch, learning_rate)

    def _stop(self, what: str, stage: Stage, epoch: int, learning_rate: float) -> NoReturn:
        last = checkpoint.latest_checkpoint(self.run)
        error = UserError if self.runtime.is_main else PeerError
        raise error(
            f"{self.run}: {what} ({stage.name}, epoch {epoch}) is not finite, at γ"
            f" {stage.policy.weight:.4g} and learning rate {learning_rate:.4g}; the last good checkpoint is"
            f" {last or 'none yet'}; a lower optimizer.learning_rate or optimizer.clip_norm may mend it"
        )

    def _validate(self, stage: Stage) -> Scores:
        valid = self.corpus.valid
        with Progress("validate", len(valid), self.runtime.is_main) as progress:
            return evaluate(self.model, valid, self.config.evaluation, self.runtime, on_progress=progress.advance)

    # -- What a run leaves ---------------------------------------------------------------------------------------------

    def finish(self) -> Results:
        """Score the test sentences with the weights that the last stage ended with, and close the run's folder."""
        settings, test = self.config.evaluation, self.corpus.test
        if self.runtime.is_main:
            self._export("best", self._weights())
            self.tracker.close()
        with Progress("evaluate", len(test), self.runtime.is_main) as progress:
            scores = evaluate(self.model, test, settings, self.runtime, settings.importance_samples, progress.advance)
        if not scores.finite:
            raise UserError(
                f"{self.run}: a score of the test sentences is not finite; see metrics.jsonl for how it came"
            )
        results = Results(
            split="test",
            scores=scores,
            floor=floor(test, self.vocabulary) if self.config.data.path == CAPTIONS else None,
            stages=tuple(self.ended),
            vocabulary=self.vocabulary.fingerprint,
            vocabulary_size=len(self.vocabulary),
            data=self.corpus.fingerprint,
            world_size=self.runtime.world_size,
        )
        if self.runtime.is_main:
            report.save_results(self.run, results)
            tracking.write_status(self.run, "finished")
        return results

    def _load(self, weights: Weights) -> None:
        self.model.load_state_dict(weights)
        self.engine.scatter()

    def _weights(self) -> Weights:
        # Copies: training goes on, and on a GPU an LSTM's weights may share one buffer, which safetensors refuses.
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _export(self, name: str, weights: Weights) -> None:
        checkpoint.export(self.run / name, weights, self.config, self.vocabulary)

    def _save(
        self, stage: Stage, plateau: Plateau, best: Best | None, optimizer: Weights, epoch: int, converged: bool
    ) -> None:
        state = RunState(
            stage=stage.name,
            epoch=epoch,
            step=self.step,
            converged=converged,
            plateau=plateau.state_dict(),
            policy=stage.policy.state_dict(),
            best=None if best is None else {"epoch": best.epoch, "kl_weight": best.kl_weight},
            ended=[asdict(end) for end in self.ended],
            data=self.corpus.fingerprint,
        )
        best_weights = None if best is None else best.weights
        checkpoint.save_checkpoint(self.run, Checkpoint(self._weights(), best_weights, optimizer, state))

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


class _Interval:
    """The mean KL since the last call."""

    def __init__(self, kl_sums: torch.Tensor):
        self._kl, self._seen = kl_sums.sum(), 0

    def mean_kl(self, kl_sums: torch.Tensor, seen: int, runtime: Runtime) -> float:
        """This rank's KL sums and all ranks' sentences so far → mean KL over all ranks: one collective."""
        kl = kl_sums.sum()
        mean = float(runtime.sum(kl - self._kl)) / (seen - self._seen)
        self._kl, self._seen = kl, seen
        return mean


if __name__ == "__main__":
    sys.exit(main())
