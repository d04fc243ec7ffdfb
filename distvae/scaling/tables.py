"""Tables and plain values of what training over several processes sends and takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distvae.config.schema import Config
from distvae.scaling.costs import (
    ENGINES,
    Collective,
    Engine,
    Work,
    count_work,
    ddp_buckets,
    epoch_collectives,
    local_steps,
    method_collectives,
    step_collectives,
)
from distvae.scaling.machine import Machine, predict


@dataclass(frozen=True)
class Question:
    """What a table of predictions is asked."""

    config: Config
    vocabulary_size: int
    tokens: int  # words and ``</s>`` of a sentence
    machine: Machine
    processes: tuple[int, ...]

    def collectives(self, work: Work, engine: Engine, processes: int) -> list[Collective]:
        """All that a step sends."""
        sent = step_collectives(work, engine, processes, self.config.communication)
        return sent + method_collectives(self.config)


def as_dict(question: Question) -> dict[str, Any]:
    """Plain values for JSON: bytes and seconds."""
    work, batch = _work(question), question.config.optimizer.batch_size
    return {
        "gradients": [asdict(gradient) | {"bytes": gradient.bytes} for gradient in work.gradients],
        "flops": work.flops,
        "draws": work.draws,
        "machine": asdict(question.machine),
        "predictions": [
            {
                "engine": engine,
                "processes": processes,
                "collectives": [asdict(collective) for collective in collectives],
                **asdict(predict(work, collectives, question.machine, processes, batch)),
            }
            for processes in question.processes
            for engine in ENGINES
            for collectives in [question.collectives(work, engine, processes)]
        ],
    }


def tables(question: Question) -> list[Table | str]:
    """What a step sends, and what it is predicted to take, with remarks between."""
    work = _work(question)
    return [
        _gradient_table(work),
        f"a sentence of {question.tokens} tokens: {work.flops / 1e9:.3f} GFLOP, and {work.draws:,} random numbers on"
        " every process",
        _collective_table(question, work),
        *_epoch_remarks(question.config),
        _prediction_table(question, work),
        "a … b: sending hidden behind the backward as far as it can be … not at all; batches are global",
    ]


def plain_table(*columns: str) -> Table:
    """A table of numbers, whose first column says what they are of."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _work(question: Question) -> Work:
    return count_work(question.config.model, question.vocabulary_size, question.tokens)


def _gradient_table(work: Work) -> Table:
    table = plain_table("gradient, as the backward completes it", "shape", "bytes", "share")
    buckets = ddp_buckets(work.gradients)
    for bucket in buckets:
        for gradient in bucket:
            shape = " × ".join(f"{n:,}" for n in gradient.shape)
            last = gradient is bucket[-1]
            table.add_row(
                gradient.name, shape, f"{gradient.bytes:,}", f"{gradient.bytes / work.bytes:.1%}", end_section=last
            )
    table.add_row(f"all, in {len(buckets)} buckets of DDP", "", f"{work.bytes:,}", "")
    return table


def _collective_table(question: Question, work: Work) -> Table:
    processes = question.processes[0]
    table = plain_table(f"a step of {processes} processes sends", "collectives", "bytes", "of DDP’s ring")
    ring = sum(_passes(c) for c in step_collectives(work, "ddp", processes))
    for engine in ENGINES:
        sent = step_collectives(work, engine, processes, question.config.communication)
        counts = Counter(c.kind.replace("_", "-") for c in sent)
        every = f" every {local_steps(question.config.communication)} steps" if engine == "local_sgd" else ""
        table.add_row(
            _title(question, engine),
            ", ".join(f"{count} {kind}" for kind, count in counts.items()) + every,
            f"{sum(c.bytes * c.per_step for c in sent):,.0f}",
            f"{sum(_passes(c) for c in sent) / ring:.1%}",
        )
    for c in method_collectives(question.config):
        every = "" if c.per_step == 1 else f" every {1 / c.per_step:.0f} steps"
        table.add_row(f"{c.what}, with each of these", f"1 all-reduce{every}", f"{c.bytes:,}", "")
    return table


def _passes(collective: Collective) -> float:
    """Bytes times how often a ring passes them around."""
    return collective.bytes * collective.per_step * (2 if collective.kind == "all_reduce" else 1)


def _epoch_remarks(config: Config) -> list[str]:
    sums, *validation = epoch_collectives(config.model, 1)
    a_sentence = " + ".join(f"{c.bytes:,}" for c in validation)
    return [
        f"an epoch: {sums.bytes:,} bytes of sums, {a_sentence} bytes a sentence of the validation; 3 all-reduces;"
        " about once a second 48 bytes of flags"
    ]


def _prediction_table(question: Question, work: Work) -> Table:
    batch = question.config.optimizer.batch_size
    table = plain_table(
        "predicted",
        "sending, ms",
        f"step at batch {batch:,}, ms",
        "sentences/s",
        "sending < 10% from batch",
        "sentences/s",
    )
    for processes in dict.fromkeys((1, *question.processes)):
        engines: Sequence[Engine] = tuple(ENGINES) if processes > 1 else ("ddp",)
        for engine in engines:
            collectives = question.collectives(work, engine, processes)
            found = predict(work, collectives, question.machine, processes, batch)
            title = f"{processes} × {_title(question, engine)}" if processes > 1 else "1 process"
            rate = None if found.step is None else [batch / seconds for seconds in found.step]
            rate_then = [size / seconds for size, seconds in zip(found.least_batch, found.least_step, strict=True)]
            table.add_row(
                title,
                f"{found.communication * 1e3:.2f}",
                "too few" if found.step is None else _span(found.step, 1e3, ".2f"),
                "" if rate is None else _span(rate, 1, ",.0f"),
                _span(found.least_batch, 1, ",d"),
                _span(rate_then, 1, ",.0f"),
                end_section=processes == 1 or engine == "fsdp2",
            )
    return table


def _title(question: Question, engine: Engine) -> str:
    if engine == "powersgd":
        return f"{ENGINES[engine]} of rank {question.config.communication.powersgd_rank}"
    if engine == "local_sgd":
        return f"{ENGINES[engine]}, {local_steps(question.config.communication)} steps"
    return ENGINES[engine]


def _span(pair: Sequence[float], factor: int | float, form: str) -> str:
    ends = [format(factor * value, form) for value in pair]
    return ends[0] if ends[0] == ends[1] else " … ".join(ends)
