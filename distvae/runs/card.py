"""The model card of a trained model: what it is, how good it is, and how to use it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from distvae import __version__
from distvae.config.keys import flatten
from distvae.config.schema import CAPTIONS, Config
from distvae.data import sources
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.metrics import METRICS
from distvae.runs.results import Results
from distvae.system.markdown import escaped, markdown_table
from distvae.system.plural import counted

# Settings that say what was trained.
_SHOWN = (
    "model.", "kl.", "inference.", "optimizer.name", "optimizer.learning_rate", "optimizer.batch_size",
    "pretrain.max_epochs", "train.max_epochs", "data.tokenizer",
)  # fmt: skip


def model_card(name: str, config: Config, vocabulary: Vocabulary, results: Results | None, license: str | None) -> str:
    """Return the card as Markdown with the hub's metadata.

    Args:
        name: of the repository or the folder.
        results: None: it has not been scored.
        license: the hub's name of a licence, such as ``mit``; None leaves it to whoever publishes the model.
    """
    known = sources.is_hub(config.data)
    data = ModelCardData(
        library_name="distvae",
        tags=["text", "lstm", "language-model" if config.language_model else "variational-autoencoder"],
        datasets=[config.data.path] if known else None,
        license=license,
        model_name=name.rpartition("/")[2] if results is not None else None,
        eval_results=None if results is None else _evaluations(config, results),
    )
    text = "\n\n".join(filter(None, [
        f"# {escaped(name.rpartition('/')[2])}",
        _kind(config, vocabulary),
        _figures(config, results),
        _usage(name, config),
        _settings(config),
        f"Trained with distvae {__version__}.",
    ]))  # fmt: skip
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def source(config: Config) -> str:
    """Return the name of the sentences: the id on the hub, or the last part of a path."""
    path = config.data.path
    return path if path == CAPTIONS or sources.is_hub(config.data) else Path(path).name


def _kind(config: Config, vocabulary: Vocabulary) -> str:
    model = config.model
    kind = "An LSTM language model" if config.language_model else "An LSTM autoencoder" if config.autoencoder else (
        "An LSTM variational autoencoder"
    )  # fmt: skip
    latent = "" if config.language_model else f" with a latent variable of {counted(model.latent_size, 'dimension')}"
    return (
        f"{kind}{latent}, trained on `{source(config)}`: {counted(len(vocabulary), 'token')} by the tokenizer"
        f" `{vocabulary.tokenizer}`, {counted(model.hidden_size, 'hidden unit')}."
    )


def _figures(config: Config, results: Results | None) -> str:
    if results is None:
        return "It has not been scored."
    scores = results.scores
    lines = [f"Scores of {counted(scores.sentences, f'{results.split} sentence')} (± standard error):", ""]
    rows = [
        [metric.title, value, metric.explanation]
        for metric in METRICS.values()
        if (value := metric.text(scores)) is not None
    ]
    if results.unknown is not None:
        rows.append(["unknown words", f"{results.unknown:.2%}", "predicted as a class"])
    lines.append(markdown_table(["metric", "", "meaning"], rows))
    if results.latent is not None:
        advice = "" if results.latent.advice is None else f": {escaped(results.latent.advice)}"
        lines += ["", f"The latent is **{results.latent.state}**{advice}."]
    if scores.importance_samples:
        lines += ["", f"The NLL is importance weighted, with K = {scores.importance_samples}."]
    return "\n".join(lines)


def _usage(name: str, config: Config) -> str:
    lines = ["```python", "import distvae", "", f'model = distvae.from_pretrained("{name}")', "model.sample(5, seed=0)"]
    if not config.language_model:
        lines.append('q = model.encode(["A sentence ."])  # q.mean, q.log_variance')
    if not config.autoencoder:
        lines.append('model.log_likelihood(["A sentence ."])  # nats')
    return "\n".join([*lines, "```"])


def _settings(config: Config) -> str:
    return markdown_table(["setting", ""], [[k, str(value)] for k, value in flatten(config) if k.startswith(_SHOWN)])


def _evaluations(config: Config, results: Results) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=source(config),
            dataset_name=source(config),
            dataset_split=results.split,
            metric_type=metric.key,
            metric_name=metric.title,
            metric_value=value,
        )
        for metric in METRICS.values()
        if (value := metric.value(results.scores)) is not None
    ]
