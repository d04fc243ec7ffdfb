"""How costs grow with the size of a corpus, of the model and its sentences, and of a split.

    python -m tests.benchmarks.growth [--sentences 10000,100000,1000000,10000000] [--quick] [--out FILE.json]

Each measurement of a corpus runs in its own process. Measurements of a model take turns in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.table import Table

from distvae.config.schema import Config, DataConfig, ModelConfig
from distvae.data import corpus
from distvae.data.batches import collate
from distvae.data.plans import Plan
from distvae.data.sentences import Sentences, Shards
from distvae.distributed.runtime import Runtime
from distvae.evaluation.scoring import mutual_information, score
from distvae.model.posterior import Posterior
from distvae.system.cores import usable_cores
from scaling.costs import count_work
from scaling.measure import RandomSteps, wait
from scaling.tables import plain_table
from tests.benchmarks.machine import CONSOLE, device, memory

BATCH, KEY, PAD = 32, (0, 1, 1), 0
MIB = 2**20

# Number of words, with frequencies by Zipf's law, and the share of sentences that end in 's: in SNLI this share has
# punctuation other than commas and a period.
WORDS, POSSESSIVE = 12_000, 0.02
# Valid and test each hold this share of the sentences, up to a limit.
HELD_OUT_SHARE, HELD_OUT_LIMIT = 0.05, 6_000
SAMPLING_SECONDS = 0.02


@dataclass(frozen=True)
class Sizes:
    """Sizes of a timed step or score."""

    vocabulary: int
    latent: int = 32
    tokens: int = 12  # words and ``</s>``
    samples: int = 50  # K


BASE, QUICK_BASE = Sizes(10_000), Sizes(1000, tokens=6, samples=10)
GROWTH = {
    "vocabulary": (10_000, 50_000, 250_000),
    "latent": (8, 32, 128),
    "tokens": (12, 50, 200),
    "samples": (50, 500),
}
QUICK_GROWTH = {"vocabulary": (1000, 10_000), "latent": (8, 128), "tokens": (6, 24), "samples": (10, 100)}
NAMES = {"vocabulary": "vocabulary", "latent": "latent size", "tokens": "words and </s>", "samples": "K"}
SCORED = 2  # sentences of a timed score
SPLITS, QUICK_SPLITS = (1000, 4000, 16_000), (500, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", help="sizes of the corpora, such as 10000,100000")
    parser.add_argument("--quick", action="store_true", help="small sizes: about a minute")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    counts = options.sentences or ("10000,100000" if options.quick else "10000,100000,1000000,10000000")
    found: dict[str, Any] = {"cores": usable_cores(), "torch": torch.__version__, "corpus": []}
    for count in map(int, filter(None, counts.split(","))):
        CONSOLE.print(f"[dim]a corpus of {count:,} sentences …")
        found["corpus"].append(corpus_costs(count))
    CONSOLE.print("[dim]training steps and scores …")
    base, growth = (QUICK_BASE, QUICK_GROWTH) if options.quick else (BASE, GROWTH)
    found |= alone(model_costs, base, growth, QUICK_SPLITS if options.quick else SPLITS, 3 if options.quick else 5)
    for title, table in tables(found):
        CONSOLE.print(f"\n{title}", table)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2), encoding="utf-8")


# -- Measuring in a new process ----------------------------------------------------------------------------------------


def alone(function: Callable[..., dict], *arguments: Any, folder: Path | None = None) -> dict[str, Any]:
    """Run a function in a new process and return its result with the bytes that it took in addition to the imports.

    ``peak`` is resident memory, ``peak_anonymous`` without pages of files, ``worker_peak`` the resident memory of its
    largest child, and ``peak_disk`` the size of the files in ``folder``.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, *arguments))
    process.start()
    theirs.close()
    before = ours.recv()
    anonymous = disk = 0
    while not ours.poll(SAMPLING_SECONDS):
        with contextlib.suppress(OSError):  # files come and go
            anonymous = max(anonymous, memory("RssAnon", process.pid))
            if folder is not None:
                disk = max(disk, bytes_below(folder))
    found = ours.recv()
    process.join()
    return found | {"peak_anonymous": max(0, anonymous - before), "peak_disk": disk}


def _answer(connection: Connection, function: Callable[..., dict], *arguments: Any) -> None:
    before = memory("VmHWM")
    connection.send(memory("RssAnon"))
    found = function(*arguments)
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    connection.send(found | {"peak": memory("VmHWM") - before, "worker_peak": worker})


def bytes_below(folder: Path) -> int:
    """Return the total size of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -- Size of a corpus --------------------------------------------------------------------------------------------------


def write_corpus(folder: Path, count: int, seed: int = 0) -> None:
    """Write ``train.txt``, ``valid.txt`` and ``test.txt``, with about the lengths of SNLI's sentences."""
    rng = np.random.default_rng(seed)
    held_out = min(HELD_OUT_LIMIT, int(HELD_OUT_SHARE * count))
    for split, size in {"valid": held_out, "test": held_out, "train": count - 2 * held_out}.items():
        with open(folder / f"{split}.txt", "w", encoding="utf-8") as file:
            for first in range(0, size, 100_000):
                file.write(_lines(min(100_000, size - first), rng))


def _lines(count: int, rng: np.random.Generator) -> str:
    lengths = np.clip(3 + rng.gamma(2.0, 3.3, count), 3, 40).astype(np.int32)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    cumulative = np.cumsum(1 / np.arange(1, WORDS + 1))
    drawn = np.searchsorted(cumulative, rng.random(offsets[-1]) * cumulative[-1])
    words = pa.array([f"w{i}" for i in range(WORDS)]).take(pa.array(drawn))
    sentences = pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")
    ends = pa.array([".\n", "'s.\n"]).take(pa.array((rng.random(count) < POSSESSIVE).astype(np.int32)))
    return "".join(pc.binary_join_element_wise(sentences, ends, "").to_pylist())


def corpus_costs(count: int) -> dict[str, Any]:
    """Measure time and memory of a corpus of ``count`` sentences, and of an epoch's batches."""
    with tempfile.TemporaryDirectory(prefix="distvae-growth-") as name:
        folder = Path(name, "text")
        folder.mkdir()
        write_corpus(folder, count)
        data = DataConfig(path=str(folder), cache=str(Path(name, "cache")))
        cold = alone(first_batch, data, folder=Path(name, "cache"))
        return {
            "sentences": count,
            "text_bytes": bytes_below(folder),
            "cold": cold,
            "cache_bytes": bytes_below(Path(data.cache)),
            "warm": alone(first_batch, data),
            "plan": alone(plan_alone, data),
            "epoch": alone(epoch, data),
        }


def first_batch(data: DataConfig) -> dict[str, Any]:
    """Time the way from a config to the first batch."""
    began = time.perf_counter()
    sentences = corpus.load(corpus.prepare(data, progress=False)).train
    plan = sentences.plan(BATCH, KEY)
    collate(sentences, plan[0], slice(0, len(plan[0])), PAD)
    return {"seconds": time.perf_counter() - began}


def plan_alone(data: DataConfig) -> dict[str, Any]:
    """Measure an epoch's plan, per sentence: seconds, and bytes while it is made and afterwards."""
    sentences = _load(data)
    began = time.process_time()
    _order(sentences.plan(BATCH, KEY))
    seconds = time.process_time() - began
    tracemalloc.start()
    plan = sentences.plan(BATCH, KEY)
    _order(plan)
    kept, peak = tracemalloc.get_traced_memory()
    del plan
    return {"seconds": seconds / len(sentences), "kept": kept, "held": peak}


def _order(plan: Plan) -> None:
    """Make the order of every group."""
    number = 0
    while number < len(plan):
        plan[number]
        number = plan.group(number).stop


def epoch(data: DataConfig) -> dict[str, Any]:
    """Time an epoch's plan and all of its batches."""
    sentences = _load(data)
    began = time.process_time()
    plan = sentences.plan(BATCH, KEY)
    for batch in plan:
        collate(sentences, batch, slice(0, len(batch)), PAD)
    return {"seconds": (time.process_time() - began) / len(sentences)}


def _load(data: DataConfig) -> Sentences | Shards:
    return corpus.load(next(Path(data.cache).iterdir())).train


# -- Sizes of a model and its sentences --------------------------------------------------------------------------------


def model_costs(base: Sizes, growth: dict[str, Sequence[int]], splits: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time training steps, importance-weighted scores, and the mutual information of whole splits."""
    runtime = Runtime()
    grid = {name: [replace(base, **{name: value}) for value in values] for name, values in growth.items()}
    trainers, actions = {}, {}
    for sizes in dict.fromkeys(sizes for some in grid.values() for sizes in some):
        config = Config(model=_model(sizes))
        trained = replace(sizes, samples=0)
        if trained not in trainers:
            trainers[trained] = RandomSteps(runtime, config, sizes.vocabulary, sizes.tokens)
            actions["step", trained] = lambda trainer=trainers[trained]: trainer.step(BATCH, send=True)
        model, sentences = trainers[trained].model, random_sentences(sizes)
        actions["score", sizes] = lambda model=model, sentences=sentences, sizes=sizes, config=config: score(
            model, sentences, config.evaluation, runtime, sizes.samples
        )
    for size in splits:
        posterior, z = random_posteriors(size, base.latent)
        actions["information", size] = lambda posterior=posterior, z=z: mutual_information(posterior, z, runtime)
    seconds = take_turns(actions, rounds)
    return {
        "device": runtime.device.type,
        "threads": torch.get_num_threads(),
        "step": [
            {"grows": name, **asdict(sizes), "seconds": seconds["step", replace(sizes, samples=0)]}
            | {"flops": BATCH * count_work(_model(sizes), sizes.vocabulary, sizes.tokens).flops}
            for name, some in grid.items()
            for sizes in some
            if name != "samples"
        ],
        "score": [
            {"grows": name, **asdict(sizes), "seconds": seconds["score", sizes] / SCORED, "flops": scoring_work(sizes)}
            for name, some in grid.items()
            for sizes in some
        ],
        "information": [{"sentences": size, "seconds": seconds["information", size]} for size in splits],
    }


def _model(sizes: Sizes) -> ModelConfig:
    return ModelConfig(latent_size=sizes.latent)


def random_sentences(sizes: Sizes) -> Sentences:
    """Return the sentences of a timed score."""
    ids = np.random.default_rng(0).integers(3, sizes.vocabulary, (SCORED, sizes.tokens + 1))
    return Sentences.of(ids.tolist())


def random_posteriors(count: int, latent: int) -> tuple[Posterior, torch.Tensor]:
    """Return posteriors and a draw from each."""
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, noise = torch.randn(3, count, latent, dtype=torch.float64, generator=generator)
    posterior = Posterior(mean, log_variance)
    return posterior, posterior.sample(noise)


def scoring_work(sizes: Sizes) -> int:
    """Return the operations of the matrix products of a sentence's scores: one encoding and K + 1 decodings."""
    model = _model(sizes)
    embedding, hidden, latent = model.embedding_size, model.hidden_size, model.latent_size
    encoding = 2 * hidden * (4 * (embedding + hidden) * (sizes.tokens + 1) + 2 * latent)
    step = 4 * (embedding + latent + hidden) + sizes.vocabulary
    return encoding + (sizes.samples + 1) * 2 * hidden * (step * sizes.tokens + latent)


def take_turns(actions: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Return the least seconds of each action, because others may use the machine; the first round does not count."""
    seconds = dict.fromkeys(actions, math.inf)
    for number in range(-1, rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            wait(device())
            if number >= 0:
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


# -- Tables ------------------------------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> list[tuple[str, Table]]:
    """Return tables with their titles."""
    where = f"{found['device'].upper()}, {found['threads']} threads"
    return [
        (
            f"Time to the first batch, without imports; {found['cores']} cores",
            _corpus_table(found["corpus"]),
        ),
        (f"The batches of an epoch, {BATCH} sentences each, on one core", _epoch_table(found["corpus"])),
        (f"A training step of {BATCH} sentences; {where}", _model_table(found["step"])),
        (f"Scores of a sentence, with its importance-weighted NLL; {where}", _model_table(found["score"])),
        ("Mutual information of a split", _information_table(found["information"])),
    ]


def _corpus_table(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("sentences", "cold, s", "µs each", "peak MiB", "anonymous", "warm, s", "peak MiB", "anonymous")
    for row in rows:
        count, cold, warm = row["sentences"], row["cold"], row["warm"]
        table.add_row(
            f"{count:,}",
            f"{cold['seconds']:.1f}",
            f"{cold['seconds'] / count * 1e6:.1f}",
            *(f"{cold[name] / MIB:.0f}" for name in ("peak", "peak_anonymous")),
            f"{warm['seconds']:.2f}",
            *(f"{warm[name] / MIB:.0f}" for name in ("peak", "peak_anonymous")),
        )
    return table


def _epoch_table(rows: list[dict[str, Any]]) -> Table:
    table = plain_table(
        "sentences", "plan, ns each", "peak MiB", "plan and collate, µs each", "disk, bytes each",
        "while built",
    )  # fmt: skip
    for row in rows:
        count, plan, epoch = row["sentences"], row["plan"], row["epoch"]
        table.add_row(
            f"{count:,}",
            f"{plan['seconds'] * 1e9:.0f}",
            f"{plan['held'] / MIB:.0f}",
            f"{epoch['seconds'] * 1e6:.2f}",
            f"{row['cache_bytes'] / count:.0f}",
            f"{row['cold']['peak_disk'] / count:.0f}",
        )
    return table


def _model_table(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("", "ms", "×", "GFLOP", "×", "time × / work ×", "GFLOP/s")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        first = next(other for other in rows if other["grows"] == row["grows"])
        time_growth, work_growth = (row[name] / first[name] for name in ("seconds", "flops"))
        table.add_row(
            f"{NAMES[row['grows']]} {row[row['grows']]:,}",
            f"{row['seconds'] * 1e3:,.1f}",
            f"{time_growth:.2f}",
            f"{row['flops'] / 1e9:,.1f}",
            f"{work_growth:.2f}",
            f"{time_growth / work_growth:.2f}",
            f"{row['flops'] / row['seconds'] / 1e9:,.0f}",
            end_section=following is not None and following["grows"] != row["grows"],
        )
    return table


def _information_table(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("sentences", "s", "ns per pair")
    for row in rows:
        pair = row["seconds"] / row["sentences"] ** 2
        table.add_row(f"{row['sentences']:,}", f"{row['seconds']:.2f}", f"{pair * 1e9:.1f}")
    return table


if __name__ == "__main__":
    main()
