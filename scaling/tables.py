"""Tables of what training with several processes sends and takes."""

from __future__ import annotations

from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distvae.config.schema import Config
from scaling.costs import (
    ENGINES,
    Collective,
    Engine,
    Work,
    count_work,
    ddp_buckets,
    epoch_collectives,
    local_steps,
    method_collectives,
    powersgd_rank,
    step_collectives,
)
from scaling.machine import SHARE, Machine, predict
from scaling.measure import Measurement


def plain_table(*columns: str) -> Table:
    """Return an empty table of numbers with a left-aligned first column."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def prediction(
    config: Config, vocabulary_size: int, tokens: int, machine: Machine, processes: tuple[int, ...]
) -> list[Table | str]:
    """Return tables of what a step sends and how long it is predicted to take, with remarks between them.

    Raises:
        UserError: the processes fill no whole number of nodes.
    """
    work = count_work(config.model, vocabulary_size, tokens)
    sums, *validation = (f"{collective.bytes:,}" for collective in epoch_collectives(config.model, 1))
    return [
        _gradients(work),
        f"a sentence of {tokens} tokens: {work.flops / 1e9:.3f} GFLOP, and {work.draws:,} random numbers",
        _messages(config, work, processes[0]),
        f"an epoch: {sums} bytes of sums, {' + '.join(validation)} bytes a sentence of the validation;"
        f" {1 + len(validation)} all-reduces; about once a second 48 bytes of flags",
        _steps(config, work, machine, processes),
    ]


def measurement(found: Measurement) -> list[Table]:
    """Return tables of measured times beside those of the fitted model."""
    tables = []
    if found.all_reduce:
        network = plain_table("all-reduce, bytes", "measured, ms", "model, ms", "model / measured")
        for size, seconds in found.all_reduce.items():
            model = found.machine.across.seconds("all_reduce", size, found.processes)
            network.add_row(f"{size:,}", f"{seconds * 1e3:.3f}", f"{model * 1e3:.3f}", f"{model / seconds:.2f}")
        tables.append(network)
    steps = plain_table("sentences per process", "sending nothing, ms", "by DDP, ms", "model, ms", "model / measured")
    for step in found.steps:
        times = (f"{seconds * 1e3:.1f}" for seconds in (step.alone, step.measured, step.predicted))
        steps.add_row(str(step.each), *times, f"{step.predicted / step.measured:.2f}")
    return [*tables, steps]


def _gradients(work: Work) -> Table:
    table = plain_table("gradient, in the order of the backward", "shape", "bytes", "share")
    buckets = ddp_buckets(work.gradients)
    for bucket in buckets:
        for gradient in bucket:
            shape = " × ".join(f"{n:,}" for n in gradient.shape)
            share = f"{gradient.bytes / work.bytes:.1%}"
            table.add_row(gradient.name, shape, f"{gradient.bytes:,}", share, end_section=gradient is bucket[-1])
    table.add_row(f"all, in {len(buckets)} buckets of DDP", "", f"{work.bytes:,}", "")
    return table


def _messages(config: Config, work: Work, processes: int) -> Table:
    table = plain_table(f"a step of {processes} processes sends", "collectives", "bytes", "of DDP’s ring")
    ring = sum(_passed(collective) for collective in step_collectives(work, "ddp", processes))
    for engine in ENGINES:
        sent = step_collectives(work, engine, processes, config.communication)
        counts = Counter(collective.kind.replace("_", "-") for collective in sent)
        every = f" every {local_steps(config.communication)} steps" if engine == "local_sgd" else ""
        table.add_row(
            _title(config, engine),
            ", ".join(f"{count} {kind}" for kind, count in counts.items()) + every,
            f"{sum(collective.bytes * collective.per_step for collective in sent):,.0f}",
            f"{sum(map(_passed, sent)) / ring:.1%}",
        )
    for collective in method_collectives(config, "ddp"):
        every = "" if collective.per_step == 1 else f" every {1 / collective.per_step:.0f} steps"
        table.add_row(f"{collective.what}, with each of these", f"1 all-reduce{every}", f"{collective.bytes:,}", "")
    return table


def _passed(collective: Collective) -> float:
    """Return bytes times how often a ring passes them around."""
    return collective.bytes * collective.per_step * (2 if collective.kind == "all_reduce" else 1)


def _steps(config: Config, work: Work, machine: Machine, processes: tuple[int, ...]) -> Table:
    batch = config.optimizer.batch_size
    table = plain_table(
        "predicted", "sending, ms", f"step at batch {batch:,}, ms", "sentences/s", f"sending < {SHARE:.0%} from batch"
    )
    rows: list[tuple[int, Engine]] = [(1, "ddp"), *((n, engine) for n in processes if n > 1 for engine in ENGINES)]
    for n, engine in rows:
        sent = step_collectives(work, engine, n, config.communication) + method_collectives(config, engine)
        found = predict(work, sent, machine, n, batch)
        table.add_row(
            f"{n} × {_title(config, engine)}" if n > 1 else "1 process",
            f"{found.sending * 1e3:.2f}",
            f"{found.step * 1e3:.2f}",
            f"{batch / found.step:,.0f}",
            f"{found.least_batch:,}",
            end_section=n == 1 or engine == [*ENGINES][-1],
        )
    return table


def _title(config: Config, engine: Engine) -> str:
    if engine == "powersgd":
        return f"{ENGINES[engine]} of rank {powersgd_rank(config.communication)}"
    if engine == "local_sgd":
        return f"{ENGINES[engine]}, {local_steps(config.communication)} steps"
    return ENGINES[engine]
