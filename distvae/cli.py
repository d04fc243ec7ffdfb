"""The command line of ``distvae``: its commands and their options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":
    # A script's folder comes first on the import path, where our `config` and `data` would hide others of such names.
    sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from distvae import __version__
from distvae.commands import compare, config, data, init, report, sweep_report
from distvae.evaluation.decoding import Decoding
from distvae.model_commands import (
    encode,
    evaluate,
    explore,
    gain,
    interpolate,
    posterior,
    probe,
    push,
    reconstruct,
    sample,
    score,
)
from distvae.system.arguments import Parser, PrintCompletion, add_probes, counts, file, integer
from distvae.system.programs import PROGRAMS, program_of, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Return 0 on success, 2 on a user error, which is one line; of a program, its own code."""
    words = sys.argv[1:] if arguments is None else arguments
    if (program := program_of(words)) is not None:
        return program()

    def run() -> int:
        options = _parser().parse_args(words)
        options.command(options)
        return 0

    return run_program(run, strict=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="distvae", description="Train text VAEs, and use them.")
    parser.add_argument("--version", action="version", version=f"distvae {__version__}")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, choices=("bash", "zsh"),
        help='for the shell\'s start-up file: eval "$(distvae --print-completion bash)"',
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, summary) in PROGRAMS.items():
        commands.add_parser(name, help=summary, add_help=False).add_argument("words", nargs="*")

    def command(
        action: Callable[[argparse.Namespace], None], *, run: bool = True, json: bool = True, hub: bool = True
    ) -> Parser:
        summary = (action.__doc__ or "").splitlines()[0]
        name = action.__name__.replace("_", "-")
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(command=action)
        if run:
            added.add_argument(
                "run", metavar="RUN", help="a run folder, an exported best/ folder" + ", or a hub id (ORG/NAME)" * hub
            )
        if json:
            added.add_argument("--json", action="store_true", help="print JSON")
        return added

    added = command(evaluate, hub=False)
    added.add_argument("--split", choices=("train", "valid", "test"), default="test")
    added.add_argument("--data", metavar="PATH", help="the sentences of the run, if they were moved")
    _add_draws(added)

    added = command(score)
    added.add_argument("data", metavar="DATA", help="a file, a folder or any other data.path; - for standard input")
    _add_settings(added)
    added.add_argument("--out", type=file, metavar="FILE", help="Parquet file for the scores of each sentence")
    _add_draws(added)

    added = command(encode)
    added.add_argument("data", nargs="?", metavar="DATA", help="as of score (default: the sentences of the run)")
    _add_settings(added)
    added.add_argument("--out", type=file, required=True, metavar="FILE", help="Parquet file")

    added = command(probe)
    added.add_argument("data", nargs="?", metavar="DATA", help="as of score (default: the sentences of the run)")
    _add_settings(added)
    added.add_argument("--beside", metavar="RUN", help="a second model, side by side")
    added.add_argument("--split", default="test", help="to predict the labels of (default test)")
    added.add_argument(
        "--labels", type=counts, metavar="N,N", default="10,100,1000,all",
        help="labelled sentences to learn from (default 10,100,1000,all)",
    )  # fmt: skip
    added.add_argument("--quick", action="store_true", help="leave out posterior means and clusters")
    added.add_argument("--seed", type=integer(0, None), default=0, help="of all draws (default 0)")
    added.add_argument("--out", type=file, metavar="FILE", help="default: probes.json in the folder RUN")

    added = command(posterior)
    added.add_argument("data", nargs="?", metavar="DATA", help="as of score (default: the sentences of the run)")
    _add_settings(added)
    added.add_argument("--split", default="test", help="the sentences of q(z), beside train (default test)")
    added.add_argument("--components", type=integer(1), default=10, metavar="N", help="Gaussians to fit (default 10)")
    added.add_argument("--quick", action="store_true", help="leave out what is decoded: NLL, and sentences of draws")
    _add_draws(added)
    added.add_argument("--out", type=file, metavar="FILE", help="default: posterior.json in the folder RUN")

    added = command(gain)
    added.add_argument("baseline", metavar="BASELINE", help="another model of the same vocabulary")
    added.add_argument("data", nargs="?", metavar="DATA", help="as of score (default: the sentences of the run)")
    _add_settings(added)
    added.add_argument("--split", default="test", help="the sentences to score (default test)")
    _add_draws(added)
    added.add_argument("--out", type=file, metavar="FILE", help="default: gain.json in the folder RUN")

    added = command(sample)
    added.add_argument(
        "--count", "-n", type=integer(1), help="sentences (default 10; for --statistics as many as valid has)"
    )
    added.add_argument(
        "--statistics", action="store_true", help="compare them with real sentences; --method is sample if not given"
    )
    added.add_argument(
        "--prior", choices=("normal", "mixture"), default="normal",
        help="normal (default): N(0, I); mixture: Gaussians that are fitted to z of the training sentences",
    )  # fmt: skip
    added.add_argument("--components", type=integer(1), metavar="N", help="Gaussians of the mixture (default 10)")
    added.add_argument(
        "--mauve", metavar="MODEL",
        help="for --statistics: MAUVE, by a language model of Hugging Face, such as gpt2-large, or a folder",
    )  # fmt: skip
    _add_decoding(added)

    added = command(interpolate)
    added.add_argument("--steps", type=integer(2), default=11, help="sentences, both ends included (default 11)")
    added.add_argument("--start", metavar="SENTENCE", help="default: a draw from the prior")
    added.add_argument("--end", metavar="SENTENCE", help="default: a draw from the prior")
    added.add_argument(
        "--statistics", action="store_true", help="of lines between the run's test sentences: how straight they are"
    )
    added.add_argument("--count", "-n", type=integer(1), help="pairs of sentences for --statistics (default 500)")
    _add_decoding(added)

    added = command(reconstruct)
    added.add_argument(
        "sentences", nargs="*", default=[], metavar="SENTENCE", help="default: one per line of standard input"
    )
    added.add_argument(
        "--statistics", action="store_true", help="of the run's test sentences: what comes back, by position and part"
    )
    _add_decoding(added)

    added = command(init, run=False)
    added.add_argument("folder", type=Path, metavar="FOLDER", help="where to put configs/, launch/ and slurm/")

    added = command(data, run=False)
    added.add_argument("config", type=Path, metavar="CONFIG", help="a training config")
    added.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="such as data.path=FILE")

    added = command(explore, json=False)
    added.add_argument("data", nargs="?", metavar="DATA", help="as of score (default: the sentences of the run)")
    _add_settings(added)
    added.add_argument("--beside", metavar="RUN", help="a second model, side by side")
    added.add_argument("--sentences", type=integer(2), default=5000, metavar="N", help="at most (default 5000)")
    added.add_argument("--port", type=integer(0), default=8050, help="0: any (default 8050)")

    added = command(push, hub=False)
    added.add_argument("repository", metavar="ORG/NAME", help="of the hub; created if need be")
    added.add_argument("--private", action="store_true", help="make a new repository private")
    added.add_argument("--license", metavar="NAME", help="for the model card, such as mit")

    added = command(config, run=False)
    added.add_argument("keys", nargs="*", default=[], metavar="KEY", help="such as kl or kl.target_rate; default: all")

    added = command(compare, run=False)
    added.add_argument("runs", nargs="+", metavar="RUN", help="run folders of finished runs")

    added = command(report, run=False)
    added.add_argument("runs", nargs="+", metavar="RUN", help="run folders, of several methods and seeds")
    added.add_argument(
        "--out", metavar="FOLDER", default=".", help="for report.html and report.md (default: the current folder)"
    )
    added.add_argument(
        "--sentence", action="append", default=[], metavar="SENTENCE",
        help="to reconstruct; may be repeated (default: built-in sentences)",
    )  # fmt: skip
    add_probes(added)

    added = command(sweep_report, run=False)
    added.add_argument("folder", metavar="FOLDER", help="a sweep folder, even one that was moved or is running")

    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="how to read DATA, such as data.columns=[question]"
    )


def _add_draws(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--importance-samples", type=integer(1), metavar="K", help="default: from the run's config")
    parser.add_argument("--seed", type=integer(0, None), help="of the draws; default: from the run's config")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    default = Decoding()
    group.add_argument(
        "--method", choices=("greedy", "sample", "beam"), help="default: greedy; of a language model, sample"
    )
    group.add_argument("--temperature", type=float, default=default.temperature, help="of sample")
    group.add_argument("--top-k", type=int, help="of sample: from the k most likely tokens")
    group.add_argument("--top-p", type=float, help="of sample: from the most likely tokens with total probability p")
    group.add_argument("--beam-size", type=int, default=default.beam_size, help="of beam")
    group.add_argument("--max-tokens", type=int, default=default.max_tokens)
    group.add_argument(
        "--seed", type=integer(0, None), default=default.seed, help="of the draws from the prior and the decoder"
    )


if __name__ == "__main__":
    sys.exit(main())
