"""Predict what more processes gain, and measure the machine that the prediction is for.

    python -m scaling predict CONFIG [key=value …] --vocabulary V
    accelerate launch … -m scaling measure CONFIG [key=value …] --vocabulary V

See docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from distvae.config.keys import flatten, known_keys
from distvae.config.load import load_config
from distvae.config.schema import Config
from distvae.distributed.runtime import Runtime
from distvae.reports.comparison import show_parts
from distvae.system.arguments import Parser, integer
from distvae.system.errors import UserError
from distvae.system.programs import run_program
from scaling import tables
from scaling.machine import ASSUMED, Machine, Network
from scaling.measure import measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Return 0 on success, 2 on a user error, which is one line."""

    def run() -> int:
        options = _parser().parse_args(arguments)
        options.command(options, load_config(options.config, options.overrides))
        return 0

    return run_program(run, strict=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m scaling", description="Predict and time what more processes gain.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace, Config], None]) -> Parser:
        added = commands.add_parser(name, help=action.__doc__, description=action.__doc__, settings=known_keys(Config))
        added.set_defaults(command=action)
        added.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/snli/pt_kla_sfb.yaml")
        added.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="such as optimizer.batch_size=4096"
        )
        added.add_argument(
            "--vocabulary", type=integer(3), required=True, metavar="V", help="tokens; a run prints their number"
        )
        added.add_argument(
            "--tokens", type=integer(1), default=9, metavar="T", help="of a sentence, </s> included (default 9)"
        )
        return added

    added = command("predict", _predict)
    added.add_argument("--processes", type=_integers, default=(8, 64, 512), metavar="N,N,…", help="default 8,64,512")
    machine = added.add_argument_group("machine", "as `measure` prints it; default: assumptions about nodes of 8 H100")
    machine.add_argument("--per-node", type=integer(1), default=ASSUMED.per_node, help="processes of a node")
    for name, value, may_be_0, meaning in _constants(ASSUMED):
        machine.add_argument(name, type=_number(may_be_0), default=value, help=f"{meaning} (default {value:g})")

    added = command("measure", _measure)
    added.add_argument(
        "--each", type=_integers, default=(1, 4, 16), metavar="N,N,…", help="sentences per process (default 1,4,16)"
    )
    added.add_argument("--rounds", type=integer(1), default=9, help="of which the median is taken (default 9)")
    added.add_argument("--json", action="store_true", help="print JSON: bytes and seconds")
    return parser


def _constants(machine: Machine) -> list[tuple[str, float, bool, str]]:
    """Return option, value, whether it may be 0, and meaning of each constant of a machine."""
    constants = [
        ("--tflops", machine.flops / 1e12, False, "10¹² operations per second of a process"),
        ("--overhead-ms", machine.step_overhead * 1e3, True, "of a step, at any batch"),
        ("--gdraws", machine.draws / 1e9, False, "10⁹ random numbers per second"),
    ]
    for prefix, network, where in (("", machine.across, "between nodes"), ("inside-", machine.inside, "in a node")):
        constants += [
            (f"--{prefix}latency-us", network.latency * 1e6, True, f"of a message {where}"),
            (f"--{prefix}bandwidth-gbps", network.bandwidth * 8 / 1e9, False, f"10⁹ bits per second {where}, each way"),
        ]
    return constants


def _predict(options: argparse.Namespace, config: Config) -> None:
    """Show what a training step sends, and predict the speedup of more processes."""
    machine = Machine(
        flops=options.tflops * 1e12,
        step_overhead=options.overhead_ms / 1e3,
        draws=options.gdraws * 1e9,
        per_node=options.per_node,
        inside=Network(options.inside_latency_us / 1e6, options.inside_bandwidth_gbps * 1e9 / 8),
        across=Network(options.latency_us / 1e6, options.bandwidth_gbps * 1e9 / 8),
    )
    show_parts(tables.prediction(config, options.vocabulary, options.tokens, machine, options.processes))


def _measure(options: argparse.Namespace, config: Config) -> None:
    """Time all-reduces and training steps of the processes that the launcher starts."""
    if len(set(options.each)) < 2:
        raise UserError("--each: should name at least two sizes, because a step's time is a constant and a slope")
    runtime = Runtime(config.engine_settings, config.communication, config.cpu_threads, config.speed.keep_memory)
    try:
        runtime.agree(dict(flatten(config)))
        found = measure(runtime, config, options.vocabulary, options.tokens, options.each, options.rounds)
        if runtime.is_main and options.json:
            print(json.dumps(asdict(found), indent=2))
        elif runtime.is_main:
            constants = _constants(found.machine)[: 3 if found.processes == 1 else 5]
            words = [f"{name} {value:.3g}" for name, value, *_ in constants]
            if found.processes > 1:
                words.insert(3, "--per-node 1")
            show_parts([*tables.measurement(found), f"as options of `predict`: {' '.join(words)}"])
    finally:
        runtime.close()


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(integer(1), text.split(",")))


def _number(may_be_0: bool) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 <= value < math.inf) or (value == 0 and not may_be_0):
            raise argparse.ArgumentTypeError(f"{text!r}: should be {'at least' if may_be_0 else 'above'} 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
