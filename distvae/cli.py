"""The commands of ``distvae``: score, sample from and compare trained models, and write reports."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # A script's folder comes first on the import path, where our `config` and `data` would hide others of such names.
    sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from distvae import __version__
from distvae.commands import compare, config, data, init, name_of, print_json, report, sweep_report
from distvae.evaluation.decoding import Decoding
from distvae.runs import finding
from distvae.system.arguments import Parser, PrintCompletion, integer
from distvae.system.errors import UserError, printable
from distvae.system.plural import counted
from distvae.system.programs import PROGRAMS, program_of, run_program

# Commands import what they need when they are called: PyTorch takes seconds, and a wrong word needs none of it.
if TYPE_CHECKING:
    from distvae.api import TextModel
    from distvae.config.schema import Config, EvaluationConfig
    from distvae.data.new_text import Part
    from distvae.distributed.runtime import Runtime
    from distvae.runs.finding import Found
    from distvae.runs.results import Results


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
        name = action.__name__.strip("_").replace("_", "-")
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(command=action)
        if run:
            added.add_argument(
                "run", metavar="RUN", help="a run folder, an exported best/ folder" + ", or a hub id (ORG/NAME)" * hub
            )
        if json:
            added.add_argument("--json", action="store_true", help="print JSON")
        return added

    added = command(_evaluate, hub=False)
    added.add_argument("--split", choices=("train", "valid", "test"), default="test")
    added.add_argument("--data", metavar="PATH", help="the sentences of the run, if they were moved")
    _add_draws(added)

    added = command(_score)
    added.add_argument("data", metavar="DATA", help="a file, a folder or any other data.path; - for standard input")
    _add_settings(added)
    added.add_argument("--out", type=Path, metavar="FILE", help="Parquet file for the scores of each sentence")
    _add_draws(added)

    added = command(_encode)
    added.add_argument("data", nargs="?", metavar="DATA", help="as of score (default: the sentences of the run)")
    _add_settings(added)
    added.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet file")

    added = command(_sample)
    added.add_argument(
        "--count", "-n", type=integer(1), help="sentences (default 10; for --statistics as many as valid has)"
    )
    added.add_argument(
        "--statistics", action="store_true", help="compare them with real sentences; --method is sample if not given"
    )
    _add_decoding(added)

    added = command(_interpolate)
    added.add_argument("--steps", type=integer(2), default=11, help="sentences, both ends included (default 11)")
    added.add_argument("--start", metavar="SENTENCE", help="default: a draw from the prior")
    added.add_argument("--end", metavar="SENTENCE", help="default: a draw from the prior")
    _add_decoding(added)

    added = command(_reconstruct)
    added.add_argument(
        "sentences", nargs="*", default=[], metavar="SENTENCE", help="default: one per line of standard input"
    )
    _add_decoding(added)

    added = command(init, run=False)
    added.add_argument("folder", type=Path, metavar="FOLDER", help="where to put configs/, launch/ and slurm/")

    added = command(data, run=False)
    added.add_argument("config", type=Path, metavar="CONFIG", help="a training config")
    added.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="such as data.path=FILE")

    added = command(_explore, json=False)
    added.add_argument("data", nargs="?", metavar="DATA", help="as of score (default: the sentences of the run)")
    _add_settings(added)
    added.add_argument("--beside", metavar="RUN", help="a second model, side by side")
    added.add_argument("--sentences", type=integer(2), default=5000, metavar="N", help="at most (default 5000)")
    added.add_argument("--port", type=integer(0), default=8050, help="0: any (default 8050)")

    added = command(_push, hub=False)
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

    added = command(sweep_report, run=False)
    added.add_argument("folder", metavar="FOLDER", help="a sweep folder, even one that was moved or is running")

    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="how to read DATA, such as data.columns=[question]"
    )


def _add_draws(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--importance-samples", type=integer(1), metavar="K", help="default: from the run's config")
    parser.add_argument("--seed", type=integer(0), help="of the draws; default: from the run's config")


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
    group.add_argument("--seed", type=int, default=default.seed, help="of the draws from the prior and the decoder")


# -- Commands ----------------------------------------------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> None:
    """Score a split: −ELBO, NLL, PPL, active units, mutual information. Several processes share the work."""
    finding.check_folder(options.run, "evaluate scores the run's own sentences (score takes a hub id and a file)")
    from distvae.reports import comparison
    from distvae.runs import reading
    from distvae.runs.rescoring import rescore
    from distvae.runs.results import results_to_dict

    export = finding.of_folder(options.run).export
    settings = _evaluation(options, export.config)
    data = reading.own_settings(export, path=options.data)
    with _runtime() as runtime:
        results = rescore(options.run, export, options.split, data, settings, runtime)
        if runtime.is_main:
            _warn_of_other_sentences(options.run, results)
            if options.json:
                print_json(results_to_dict(results))
            else:
                comparison.show({name_of(options.run): results})


def _score(options: argparse.Namespace) -> None:
    """Score new text: −ELBO, NLL, PPL, bits per character, unknown words. Several processes share the work."""
    export = finding.find(options.run).export
    from distvae.reports import comparison
    from distvae.runs import reading, rescoring
    from distvae.runs.results import results_to_dict

    settings = _evaluation(options, export.config)
    data = reading.settings(options.data, options.settings, export.config.data)
    with _runtime() as runtime, reading.new_sentences(data, export, runtime) as text:
        scored = rescoring.score_text(export, text, settings, runtime)
        if not runtime.is_main:
            return
        if options.out is not None:
            rescoring.write_sentence_scores(options.out, export, text, scored)
        name = name_of(options.run)
        results = {name if len(scored) == 1 else f"{name}, {split}": result for split, (result, _) in scored.items()}
        if options.json:
            print_json({split: results_to_dict(result) for split, result in results.items()})
        else:
            _print_notes(text.notes)
            comparison.show(results)


def _encode(options: argparse.Namespace) -> None:
    """Write the posterior of each sentence to a Parquet file. Several processes share the work."""
    found = finding.find(options.run)
    from distvae.runs.encodings import write_encodings
    from distvae.system.progress_bar import Progress

    with _runtime() as runtime, _sentences(options, found, runtime) as (parts, notes):
        total = sum(len(part.sentences) for part in parts.values())
        with Progress("encode", total, runtime.is_main) as progress:
            model = found.export.model(runtime.device)
            write_encodings(options.out, model, parts, found.export.vocabulary, runtime, progress.advance)
        if runtime.is_main:
            if options.json:
                counts = {split: len(part.sentences) for split, part in parts.items()}
                print_json({"out": str(options.out), "sentences": counts})
            else:
                _print_notes(notes)
                print(printable(f"{options.out}: {counted(total, 'sentence')}"))


def _explore(options: argparse.Namespace) -> None:
    """Explore the latent space of a model, or of two, in the browser."""
    from distvae.explore import serve

    serve.check_installed()
    models = [finding.find(run) for run in filter(None, [options.run, options.beside])]
    from distvae.api import TextModel
    from distvae.config.schema import DataConfig
    from distvae.data import sources
    from distvae.explore.space import build

    if options.data == sources.STANDARD_INPUT:  # which can be read once, and two models need it
        cache = models[0].export.config.data.cache
        options.data = sources.pinned(DataConfig(path=options.data, cache=cache)).path
    spaces = []
    with _runtime() as runtime:
        for found in models:
            with _sentences(options, found, runtime) as (parts, _):
                spaces.append(build(name_of(found.name), TextModel(found), parts, options.sentences))
    serve.serve(spaces, options.port)


@contextlib.contextmanager
def _sentences(
    options: argparse.Namespace, found: Found, runtime: Runtime
) -> Iterator[tuple[dict[str, Part], tuple[str, ...]]]:
    """Yield the sentences of the options, with notes: of DATA, or of the run."""
    from distvae.data.new_text import of_corpus
    from distvae.runs import reading

    export = found.export
    if export.config.language_model:
        raise UserError(f"{found.name}: is a language model; it has no latent variable to encode to")
    if options.data is None or options.data.startswith("data."):
        data = reading.own_settings(export, [*filter(None, [options.data]), *options.settings])
        yield of_corpus(reading.own_corpus(found.name, export, data, runtime)), ()
    else:
        data = reading.settings(options.data, options.settings, export.config.data)
        with reading.new_sentences(data, export, runtime) as text:
            yield text.parts, text.notes


@contextlib.contextmanager
def _runtime() -> Iterator[Runtime]:
    from distvae.config.schema import OptimizerConfig
    from distvae.distributed.runtime import Runtime

    runtime = Runtime(OptimizerConfig(mixed_precision="no"))
    try:
        yield runtime
    finally:
        runtime.close()


def _evaluation(options: argparse.Namespace, config: Config) -> EvaluationConfig:
    """Return the evaluation settings of a run with those of the command line."""
    from distvae.config.load import with_values

    if options.importance_samples is not None and config.autoencoder:
        raise UserError(f"--importance-samples: {options.run} is an autoencoder; its z has no prior, so it has no NLL")
    if config.language_model:
        for option, value in (("--importance-samples", options.importance_samples), ("--seed", options.seed)):
            if value is not None:
                raise UserError(f"{option}: {options.run} is a language model; it draws no z, and its NLL is exact")
    return with_values(config.evaluation, importance_samples=options.importance_samples, seed=options.seed)


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(printable(note))


def _warn_of_other_sentences(run: str, results: Results) -> None:
    """Warn if the run has results and they are of other sentences."""
    from distvae.runs.results import load_results

    with contextlib.suppress(UserError):
        known = load_results(run).data
        if known != results.data:
            warning = f"{run}: these sentences ({results.data}) are not those of its own results ({known})"
            print(printable(f"distvae: WARNING {warning}"), file=sys.stderr)


def _sample(options: argparse.Namespace) -> None:
    """Decode draws from the prior. A language model, which has none, draws words."""
    if options.statistics:
        _sample_statistics(options)
        return
    model = _load(options.run)
    sentences = model.sample(options.count or 10, **_given(options))
    _print(options, model, sentences, {"sentences": sentences})


def _sample_statistics(options: argparse.Namespace) -> None:
    found = finding.find(options.run)
    from distvae.api import TextModel
    from distvae.reports import samples
    from distvae.runs import reading
    from distvae.runs.sampling import compare_samples
    from distvae.system.progress_bar import Progress

    options.method = options.method or "sample"
    model = TextModel(found)
    with _runtime() as runtime:
        corpus = reading.own_corpus(found.name, found.export, reading.own_settings(found.export), runtime)
    count = min(options.count or len(corpus.valid), len(corpus.valid))
    decoding = model.decoding(**_given(options))
    with Progress("sample", count, shown=True) as progress:
        statistics = compare_samples(model.model, corpus, decoding, count, progress.advance)
    if options.json:
        print_json({name: asdict(each) for name, each in statistics.items()} | {"decoding": asdict(decoding)})
    else:
        samples.show(statistics)


def _interpolate(options: argparse.Namespace) -> None:
    """Decode points on a line in latent space between prior draws or sentences of your own."""
    model = _load(options.run)
    from distvae.evaluation.generation import prior_draws

    drawn = prior_draws(model.model, 2, options.seed)
    start, end = (z if given is None else given for z, given in zip(drawn, (options.start, options.end), strict=True))
    sentences = model.interpolate(start, end, options.steps, **_given(options))
    _print(options, model, sentences, {"sentences": sentences})


def _reconstruct(options: argparse.Namespace) -> None:
    """Encode sentences to their posterior means, and decode these."""
    try:
        sentences = options.sentences or [line.strip() for line in sys.stdin if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: is not {error.encoding}: {error.reason}") from None
    if not sentences:
        raise UserError("no sentences to reconstruct; give them as arguments, or one per line on standard input")
    model = _load(options.run)
    rebuilt = model.reconstruct(sentences, **_given(options))
    pairs = list(zip(sentences, rebuilt, strict=True))
    lines = [line for sentence, other in pairs for line in (sentence, f"  → {other}")]
    _print(options, model, lines, {"sentences": [{"sentence": s, "reconstruction": r} for s, r in pairs]})


def _push(options: argparse.Namespace) -> None:
    """Upload a model to the hub, with its results and a model card. Log in first: hf auth login."""
    finding.check_folder(options.run, "push uploads the model of a run folder, or of an exported one")
    from distvae.api import load

    address = load(options.run, "cpu").push_to_hub(options.repository, options.private or None, options.license)
    if options.json:
        print_json({"address": address})
    else:
        print(printable(address))


# -- Parts -------------------------------------------------------------------------------------------------------------


def _load(run: str) -> TextModel:
    """Load the model of a folder or of the hub."""
    found = finding.find(run)
    from distvae.api import TextModel

    return TextModel(found)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(Decoding)}


def _print(options: argparse.Namespace, model: TextModel, lines: list[str], content: dict[str, Any]) -> None:
    if options.json:
        print_json(content | {"decoding": asdict(model.decoding(**_given(options)))})
    else:
        print("\n".join(map(printable, lines)))


if __name__ == "__main__":
    sys.exit(main())
