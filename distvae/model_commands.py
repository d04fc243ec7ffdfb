"""Commands of ``distvae`` that need a trained model: score, encode, sample and share it."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distvae.commands import name_of, print_json
from distvae.evaluation.decoding import Decoding
from distvae.runs import finding
from distvae.system.errors import UserError, printable
from distvae.system.files import output_file
from distvae.system.plural import counted

# Commands import what they need when they are called: PyTorch takes seconds, and a wrong name needs none of it.
if TYPE_CHECKING:
    from rich.table import Table

    from distvae.api import TextModel
    from distvae.config.schema import Config, DataConfig, EvaluationConfig
    from distvae.data.corpus import Corpus
    from distvae.data.new_text import NewText
    from distvae.distributed.runtime import Runtime
    from distvae.runs.finding import Found
    from distvae.runs.findings import Findings


def evaluate(options: argparse.Namespace) -> None:
    """Score a split: −ELBO, NLL, PPL, active units, mutual information. Several processes share the work."""
    finding.check_folder(options.run, "evaluate scores the run's own sentences (score takes a hub id and a file)")
    from distvae.reports import comparison
    from distvae.runs import reading
    from distvae.runs.rescoring import rescore
    from distvae.runs.results import results_to_dict

    found = finding.of_folder(options.run)
    export = found.export
    settings = _evaluation(options, export.config)
    data = reading.own_settings(export, path=options.data)
    with _runtime() as runtime:
        results = rescore(options.run, export, options.split, data, settings, runtime)
        if runtime.is_main:
            _warn_of_other_sentences(found, results.data)
            if options.json:
                print_json(results_to_dict(results))
            else:
                comparison.show({name_of(options.run): results})


def score(options: argparse.Namespace) -> None:
    """Score new text: −ELBO, NLL, PPL, bits per character, unknown words. Several processes share the work."""
    export = finding.find(options.run).export
    from distvae.reports import comparison
    from distvae.runs import reading, rescoring
    from distvae.runs.results import results_to_dict

    settings = _evaluation(options, export.config)
    data = reading.settings(options.data, options.settings, export.config.data)
    with _runtime() as runtime:
        out = None if options.out is None else _output(options, data, runtime)
        with reading.new_sentences(data, export, runtime) as text:
            scored = rescoring.score_text(export, text, settings, runtime)
        if not runtime.is_main:
            return
        if out is not None:
            rescoring.write_sentence_scores(out, export, text, scored)
        name = name_of(options.run)
        results = {name if len(scored) == 1 else f"{name}, {split}": result for split, (result, _) in scored.items()}
        if options.json:
            print_json({split: results_to_dict(result) for split, result in results.items()})
        else:
            _print_notes(text.notes)
            comparison.show(results)


def encode(options: argparse.Namespace) -> None:
    """Write the posterior of each sentence to a Parquet file. Several processes share the work."""
    found = finding.find(options.run)
    from distvae.runs.encodings import write_encodings
    from distvae.system.progress_bar import Progress

    with _runtime() as runtime:
        out = _output(options, _data(options, found), runtime)
        with _sentences(options, found, runtime) as text:
            total = sum(len(part.sentences) for part in text.parts.values())
            with Progress("encode", total, runtime.is_main) as progress:
                model = found.export.model(runtime.device)
                write_encodings(out, model, text.parts, found.export.vocabulary, runtime, progress.advance)
        if runtime.is_main:
            if options.json:
                counts = {split: len(part.sentences) for split, part in text.parts.items()}
                print_json({"out": str(options.out), "sentences": counts})
            else:
                _print_notes(text.notes)
                print(printable(f"{options.out}: {counted(total, 'sentence')}"))


def probe(options: argparse.Namespace) -> None:
    """Read labels from z by linear probes and clusters, beside chance and a bag of words."""
    from distvae.evaluation.probes import check_installed

    check_installed("distvae probe")
    if options.out is None:
        finding.check_folder(options.run, "for a model of the hub, name a file by --out")
    models = [finding.find(run) for run in filter(None, [options.run, options.beside])]
    from distvae.reports import probes
    from distvae.runs import probing

    encoded = []
    with _runtime() as runtime:
        out = _output(options, _data(options, models[0]), runtime, probing.PROBES)
        for found, name in zip(models, _names(models), strict=True):
            with _sentences(options, found, runtime) as text:
                encoded.append(probing.encode(name, found.export, text, options.split, runtime))
        done = runtime.on_main(
            lambda: probing.probe(encoded, options.split, options.labels, options.quick, options.seed, shown=True)
        )
        if runtime.is_main:
            _save_and_show(done, options, out, probes.parts(done))


def posterior(options: argparse.Namespace) -> None:
    """Compare q(z), the mean of all posteriors, with the prior: KL, holes, NLL by number of samples."""
    from distvae.evaluation.probes import check_installed

    check_installed("distvae posterior")
    if options.out is None:
        finding.check_folder(options.run, "for a model of the hub, name a file by --out")
    found = finding.find(options.run)
    from distvae.config.load import with_values
    from distvae.reports import aggregate
    from distvae.runs.aggregate import examine

    given = {"importance_samples": options.importance_samples, "seed": options.seed}
    settings = with_values(found.export.config.evaluation, **given)
    with _runtime() as runtime:
        out = _output(options, _data(options, found), runtime, "posterior.json")
        with _sentences(options, found, runtime) as text:
            name, split, components = found.name, options.split, options.components
            done = examine(name, found.export, text.parts, split, settings, components, options.quick, runtime)
        if runtime.is_main:
            _save_and_show(done, options, out, [*text.notes, *aggregate.parts(done)])


def gain(options: argparse.Namespace) -> None:
    """Compare the NLL with that of a baseline, such as a language model: by sentence length and by position."""
    if options.out is None:
        finding.check_folder(options.run, "for a model of the hub, name a file by --out")
    models = [finding.find(run) for run in (options.run, options.baseline)]
    from distvae.reports import gain as report
    from distvae.runs.gain import check_comparable, check_own_split, compare

    check_comparable(*models)
    settings = _evaluation(options, models[0].export.config)
    with _runtime() as runtime:
        out = _output(options, _data(options, models[0]), runtime, "gain.json")
        with _sentences(options, models[0], runtime) as text:
            if _are_own(options):
                check_own_split(models, options.split, _own_overrides(options), runtime)
            done = compare(models, _names(models), text.parts, options.split, settings, runtime)
        if runtime.is_main:
            _save_and_show(done, options, out, [*text.notes, *report.parts(done)])


def explore(options: argparse.Namespace) -> None:
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
            with _sentences(options, found, runtime) as text:
                spaces.append(build(name_of(found.name), TextModel(found), text.parts, options.sentences))
    serve.serve(spaces, options.port)


def _output(options: argparse.Namespace, data: DataConfig, runtime: Runtime, default: str = "") -> Path:
    """Return the file to write, by default one of the run folder, once it is known that it can be written.

    Every process must call this, before the work.

    Args:
        data: what is read.
    """
    from distvae.runs import reading

    def check() -> Path:
        try:
            return output_file(options.out or Path(options.run, default), reading.files_of(data))
        except UserError as error:
            raise error if options.out else UserError(f"{error}; name another file by --out FILE") from None

    return runtime.on_main(check)


def _save_and_show(done: Findings, options: argparse.Namespace, out: Path, parts: Iterable[Table | str]) -> None:
    """Write what was found, and print it."""
    from distvae.reports import comparison

    done.save(out)
    if options.json:
        print_json(done.as_dict())
    else:
        comparison.show_parts(parts)


def _names(models: Sequence[Found]) -> list[str]:
    """Return short names of models, by which they can be told apart."""
    names = [name_of(found.name) for found in models]
    return names if len({*names}) == len(names) else [found.name for found in models]


@contextlib.contextmanager
def _sentences(options: argparse.Namespace, found: Found, runtime: Runtime) -> Iterator[NewText]:
    """Yield the sentences of the options: of DATA, or of the run."""
    from distvae.runs import reading

    data = _data(options, found)
    if _are_own(options):
        text = reading.own_text(found.name, found.export, data, runtime)
        if runtime.is_main:
            _warn_of_other_sentences(found, text.fingerprint)
        yield text
    else:
        with reading.new_sentences(data, found.export, runtime) as text:
            yield text


def _data(options: argparse.Namespace, found: Found) -> DataConfig:
    """Return where the sentences of the options are."""
    from distvae.runs import reading

    _need_z(found, "encode to")
    if _are_own(options):
        return reading.own_settings(found.export, _own_overrides(options))
    return reading.settings(options.data, options.settings, found.export.config.data)


def _are_own(options: argparse.Namespace) -> bool:
    """Return whether the sentences are those of the run: instead of DATA there is nothing, or a setting."""
    return options.data is None or options.data.startswith("data.")


def _own_overrides(options: argparse.Namespace) -> list[str]:
    return [*filter(None, [options.data]), *options.settings]


@contextlib.contextmanager
def _runtime() -> Iterator[Runtime]:
    from distvae.config.schema import OptimizerConfig
    from distvae.distributed.runtime import Runtime

    with contextlib.closing(Runtime(OptimizerConfig(mixed_precision="no"))) as runtime:
        yield runtime


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


def _warn_of_other_sentences(found: Found, data: str) -> None:
    """Warn if the run has results and they are of other sentences."""
    if found.results is not None and found.results.data != data:
        warning = f"{found.name}: these sentences ({data}) are not those of its own results ({found.results.data})"
        print(printable(f"distvae: WARNING {warning}"), file=sys.stderr)


def sample(options: argparse.Namespace) -> None:
    """Decode draws from the prior. A language model, which has none, draws words."""
    if options.statistics:
        _sample_statistics(options)
        return
    if options.mauve is not None:
        raise UserError("--mauve: is one of the figures of --statistics")
    model = _load(options.run)
    sentences = model.sample(options.count or 10, prior=options.prior, components=options.components, **_given(options))
    _print(options, model, sentences, {"sentences": sentences})


def _sample_statistics(options: argparse.Namespace) -> None:
    found = finding.find(options.run)
    from distvae.api import TextModel
    from distvae.evaluation.mauve import Features
    from distvae.reports import samples
    from distvae.runs.sampling import compare_samples
    from distvae.system.progress_bar import Progress

    options.method = options.method or "sample"
    model = TextModel(found)
    features = None if options.mauve is None else Features(options.mauve, model.device)
    corpus = _own_corpus(found)
    count = min(options.count or len(corpus.valid), len(corpus.valid))
    decoding = model.decoding(**_given(options))
    fitted = model.prior(options.prior, options.components, decoding.seed)
    with Progress("sample", count if fitted is None else 2 * count, shown=True) as progress:
        statistics = compare_samples(model.model, corpus, decoding, count, progress.advance, fitted, features)
    if options.json:
        print_json({name: asdict(each) for name, each in statistics.items()} | {"decoding": asdict(decoding)})
    else:
        samples.show(statistics)


def interpolate(options: argparse.Namespace) -> None:
    """Decode points on a line in latent space between prior draws or sentences of your own."""
    if options.statistics:
        _interpolation_statistics(options)
        return
    if options.count is not None:
        raise UserError("--count: is the number of pairs of --statistics")
    model = _load(options.run)
    from distvae.evaluation.generation import prior_draws

    drawn = prior_draws(model.model, 2, options.seed)
    start, end = (z if given is None else given for z, given in zip(drawn, (options.start, options.end), strict=True))
    sentences = model.interpolate(start, end, options.steps, **_given(options))
    _print(options, model, sentences, {"sentences": sentences})


def _interpolation_statistics(options: argparse.Namespace) -> None:
    if options.start is not None or options.end is not None:
        raise UserError("--statistics: goes between test sentences of the run; leave out --start and --end")
    if options.steps < 3:
        raise UserError(f"--steps {options.steps}: --statistics needs a point between the ends, so at least 3")
    found = finding.find(options.run)
    _need_z(found, "interpolate in")
    from distvae.api import TextModel
    from distvae.evaluation.interpolation import PAIRS, draw_pairs, interpolate
    from distvae.reports import comparison, interpolation
    from distvae.system.progress_bar import Progress

    model = TextModel(found)
    decoding = model.decoding(**_given(options))
    corpus = _own_corpus(found)
    numbers = draw_pairs(len(corpus.test), options.count or PAIRS, decoding.seed)
    with Progress("interpolate", len(numbers) // 2 * options.steps, shown=True) as progress:
        paths = interpolate(model.model, corpus, numbers, options.steps, decoding, progress.advance)
    if options.json:
        print_json(asdict(paths) | {"decoding": asdict(decoding)})
    else:
        comparison.show_parts([interpolation.table(paths)])


def reconstruct(options: argparse.Namespace) -> None:
    """Encode sentences to their posterior means, and decode these."""
    if options.statistics:
        _reconstruction_statistics(options)
        return
    sentences = options.sentences or _piped()
    if not sentences:
        raise UserError("no sentences to reconstruct; give them as arguments, or one per line on standard input")
    model = _load(options.run)
    rebuilt = model.reconstruct(sentences, **_given(options))
    pairs = list(zip(sentences, rebuilt, strict=True))
    lines = [line for sentence, other in pairs for line in (sentence, f"  → {other}")]
    _print(options, model, lines, {"sentences": [{"sentence": s, "reconstruction": r} for s, r in pairs]})


def _piped() -> list[str]:
    """Return the lines of standard input but the blank ones, read as those of a text file."""
    from distvae.data.readers.lines import BOM, lines

    with tempfile.TemporaryDirectory(prefix="distvae-") as folder:
        path = Path(folder, "standard input")
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            found = [line.lstrip(BOM).strip() for line in lines(path)]
        except OSError as error:
            raise UserError(f"standard input: cannot be read: {error.strerror or error}") from None
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{folder}/")) from None
    return [line for line in found if line]


def _reconstruction_statistics(options: argparse.Namespace) -> None:
    if options.sentences:
        raise UserError("--statistics: reads the test sentences of the run; leave out your own")
    found = finding.find(options.run)
    _need_z(found, "reconstruct from")
    from distvae.api import TextModel
    from distvae.evaluation.reconstruction import reconstruct
    from distvae.reports import comparison, reconstruction
    from distvae.system.progress_bar import Progress

    model = TextModel(found)
    decoding = model.decoding(**_given(options))
    test = _own_corpus(found).test
    with Progress("reconstruct", len(test), shown=True) as progress:
        statistics = reconstruct(model.model, test, model.vocabulary, decoding, progress.advance)
    if options.json:
        print_json({name: asdict(each) for name, each in statistics.items()} | {"decoding": asdict(decoding)})
    else:
        comparison.show_parts([reconstruction.table(statistics)])


def push(options: argparse.Namespace) -> None:
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


def _need_z(found: Found, action: str) -> None:
    if found.export.config.language_model:
        raise UserError(f"{found.name}: is a language model; it has no latent variable to {action}")


def _own_corpus(found: Found) -> Corpus:
    """Read the sentences that a model was trained with."""
    from distvae.runs import reading

    with _runtime() as runtime:
        return reading.own_corpus(found.name, found.export, reading.own_settings(found.export), runtime)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(Decoding)}


def _print(options: argparse.Namespace, model: TextModel, lines: list[str], content: dict[str, Any]) -> None:
    if options.json:
        print_json(content | {"decoding": asdict(model.decoding(**_given(options)))})
    else:
        print("\n".join(map(printable, lines)))
