"""The contestants: this trainer and the textbook, each in its own process, taking turns on the machine.

Other load on the machine therefore affects all of them alike, the textbook has the allocator and settings of a plain
program, and neither shares memory or library state with the other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from distvae.config.load import load_config
from distvae.config.schema import Config
from distvae.data import corpus
from distvae.data.batches import collate
from distvae.data.plans import Plan
from distvae.data.sentences import Sentences
from distvae.distributed.engines import make_engine
from distvae.distributed.runtime import Runtime
from distvae.evaluation.scoring import score
from distvae.model import draws
from distvae.model.vae import initialise, model_of
from distvae.training import step
from distvae.training.stages import stages_of
from distvae.training.step import Sums, TrainStep, graphed_steps
from scaling.measure import wait
from tests.benchmarks.machine import device, memory
from tests.benchmarks.sentences import write_sentences
from tests.benchmarks.textbook import TextbookTraining, TextbookVAE, importance_weighted_nll

# Number of sentences of one length that are scored together.
_TOGETHER = 2

# Parts of a step that are timed one by one.
PARTS = ("data", "noise", "forward", "backward", "optimizer", "other")


@dataclass(frozen=True)
class Contest:
    """The input of all contestants."""

    config: Path
    overrides: tuple[str, ...] = ()
    sentences: int = 4  # to score
    samples: int = 500  # importance samples of each
    together: int = _TOGETHER  # sentences that this trainer scores at a time

    def load(self, *more: str) -> Config:
        return load_config(self.config, [*self.overrides, *more])


def prepare(folder: Path, overrides: tuple[str, ...], sentences: int) -> Contest:
    """Write the sentences and the config of a contest."""
    write_sentences(folder / "data", train=8000, valid=max(500, sentences), test=100)
    config = {
        "data": {"path": str(folder / "data"), "min_count": 1, "cache": str(folder / "cache")},
        # With these values the weights stay near their initial ones, however many steps are timed.
        "model": {"init_range": 0.1},
        "optimizer": {"learning_rate": 0.01},
        "checkpoint": {"every_minutes": None},
    }
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return Contest(folder / "benchmark.yaml", overrides, sentences)


class Ours:
    """The project's training step and evaluation."""

    def __init__(self, contest: Contest, *overrides: str):
        config = self.config = contest.load(*overrides)
        speed = config.speed
        self.runtime = Runtime(config.engine_settings, config.communication, config.cpu_threads, speed.keep_memory)
        self.corpus = corpus.load(corpus.prepare(config.data, progress=False))
        pad, unknown = self.corpus.vocabulary.pad, self.corpus.vocabulary.unknown
        self.model = model_of(config, len(self.corpus.vocabulary), pad, unknown)
        initialise(self.model, config.model, draws.generator("cpu", config.seed, "initial weights"))
        self.model.to(self.runtime.device)
        self.engine = make_engine(self.runtime, self.model, config.optimizer, config.speed.embedding_gradients)
        graphs = None
        if config.speed.cuda_graphs:
            parameters = list(self.model.parameters())
            graphs = graphed_steps(self.runtime, parameters, config.optimizer.accumulation_steps)
        self.step = TrainStep(self.runtime, self.engine, config, pad, graphs)
        self.stage = stages_of(config, self.runtime.device)[0]
        self.sums = Sums(config.model.latent_size, self.runtime.device)
        self.engine.module.train()
        self.contest, self.bf16 = contest, config.optimizer.mixed_precision == "bf16"
        self.scored = some_of(self.corpus.valid, contest.sentences)

    def train(self, batch_size: int, first: int, count: int) -> float:
        """Return the seconds of ``count`` steps, starting with step ``first`` of an epoch."""
        plan, stage = plan_of(self.corpus, batch_size), self.stage
        began = time.perf_counter()
        for i in range(first, first + count):
            batch, key = plan[i % len(plan)], (stage.name, 1, i)
            self.sums.add(self.step(self.corpus.train, batch, key, stage.objective).sums)
        wait(self.runtime.device)
        return time.perf_counter() - began

    def parts(self, batch_size: int, first: int, count: int) -> dict[str, float]:
        """Return the seconds of the parts of ``count`` steps, waiting for the device after each."""
        seconds = dict.fromkeys(PARTS, 0.0)
        accelerator, engine = self.runtime.accelerator, self.engine
        with contextlib.ExitStack() as stack:
            for holder, name, part in [
                (step, "collate", "data"),
                (draws, "training_noise", "noise"),
                (engine.module, "forward", "forward"),
                (accelerator, "backward", "backward"),
                (engine, "step", "optimizer"),
            ]:
                stack.enter_context(self._timed(holder, name, seconds, part))
            seconds["other"] = self.train(batch_size, first, count) - sum(seconds.values())
        return seconds

    def score(self) -> tuple[float, float]:
        """Return the seconds of the importance-weighted NLL of some sentences, and its mean."""
        settings = self.config.evaluation
        settings = replace(settings, batch_size=self.contest.together, mixed_precision="bf16" if self.bf16 else "no")
        began = time.perf_counter()
        scores, _ = score(self.model, self.scored, settings, self.runtime, self.contest.samples)
        return time.perf_counter() - began, scores.nll.mean

    @contextlib.contextmanager
    def _timed(self, holder: Any, name: str, seconds: dict[str, float], part: str) -> Iterator[None]:
        plain = getattr(holder, name)

        def timed(*args, **kwargs):
            wait(self.runtime.device)
            began = time.perf_counter()
            done = plain(*args, **kwargs)
            wait(self.runtime.device)
            seconds[part] += time.perf_counter() - began
            return done

        setattr(holder, name, timed)
        try:
            yield
        finally:
            setattr(holder, name, plain)

    def weights(self) -> dict[str, np.ndarray]:
        return {name: value.cpu().numpy() for name, value in self.model.state_dict().items()}


class Textbook:
    """The textbook's step and scoring, on the same sentences; its batches are on the device beforehand."""

    def __init__(self, contest: Contest):
        config = contest.load()
        self.device = device()
        if config.cpu_threads is not None:
            torch.set_num_threads(config.cpu_threads)
        self.corpus = corpus.load(corpus.prepare(config.data, progress=False))
        self.vocabulary = self.corpus.vocabulary
        self.model = TextbookVAE(config.model, len(self.vocabulary), self.vocabulary.pad).to(self.device)
        self.training = TextbookTraining(self.model, config.optimizer.learning_rate, config.optimizer.clip_norm)
        self.batches: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.contest, self.scored = contest, some_of(self.corpus.valid, contest.sentences)

    def train(self, batch_size: int, first: int, count: int) -> float:
        """See ``Ours.train``."""
        plan = plan_of(self.corpus, batch_size)
        batches = [self._batch(plan, batch_size, i % len(plan)) for i in range(first, first + count)]
        self.model.train()
        began = time.perf_counter()
        for tokens, lengths in batches:
            self.training.step(tokens, lengths, 0.0)
        return time.perf_counter() - began

    def score(self) -> tuple[float, float]:
        """See ``Ours.score``."""
        self.model.eval()
        sentences = [torch.tensor(ids, dtype=torch.long, device=self.device) for ids in self.scored]
        began = time.perf_counter()
        nll = [importance_weighted_nll(self.model, sentence, self.contest.samples) for sentence in sentences]
        return time.perf_counter() - began, float(np.mean(nll))

    def _batch(self, plan: Plan, batch_size: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if (batch_size, number) not in self.batches:
            sentences = plan[number]
            batch = collate(self.corpus.train, sentences, slice(0, len(sentences)), self.vocabulary.pad)
            self.batches[batch_size, number] = batch.tokens.to(self.device), batch.lengths.to(self.device)
        return self.batches[batch_size, number]


class Process:
    """A contestant in its own process. ``ask`` calls one of its methods and returns the result."""

    def __init__(self, kind: type, contest: Contest, *overrides: str):
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, kind, contest, overrides), daemon=True)
        self._process.start()
        there.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        self.tell(method, *arguments)
        return self.answer()

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting; ``answer`` returns the result."""
        self._here.send((method, arguments))

    def answer(self) -> Any:
        try:
            return self._here.recv()
        except EOFError:
            raise SystemExit("a contestant failed: see above") from None

    def close(self) -> None:
        self._here.close()
        self._process.join()


def _serve(pipe, kind: type, contest: Contest, overrides: tuple[str, ...]) -> None:
    contestant = kind(contest, *overrides)
    with contextlib.suppress(EOFError):
        while True:
            method, arguments = pipe.recv()
            pipe.send(_peak_memory() if method == "memory" else getattr(contestant, method)(*arguments))


def _peak_memory() -> int:
    """Return the peak memory in bytes: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return memory("VmHWM")


def plan_of(sentences: corpus.Corpus, batch_size: int) -> Plan:
    """Return the batches of an epoch."""
    return sentences.train.plan(batch_size, (0, 0, 1))


class _Some:
    """Some sentences, as a split."""

    def __init__(self, ids: list[np.ndarray]):
        self.ids, self.lengths = ids, np.array([len(row) for row in ids], dtype=np.int32)
        self.characters = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[index]


def some_of(sentences: Sentences, count: int) -> _Some:
    """Sentences from all over the lengths there are, two of a length."""
    order = np.argsort(sentences.lengths, kind="stable")
    places = np.linspace(0, len(order) - _TOGETHER, count // _TOGETHER).round().astype(int)
    return _Some([sentences[int(order[place + i])] for place in places for i in range(_TOGETHER)])


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    return tuple(float(v) for v in np.percentile(values, (25, 50, 75)))
