"""What a model gains over another on the same sentences: ``gain.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distvae.config.keys import keys_with
from distvae.config.schema import DataConfig, EvaluationConfig
from distvae.data.new_text import Part
from distvae.data.splits import SPLITS
from distvae.distributed.runtime import Runtime
from distvae.evaluation.gain import Gain, token_scores
from distvae.runs.finding import Found
from distvae.runs.findings import Findings
from distvae.runs.reading import differing, own_corpus, own_settings, same
from distvae.system.errors import UserError
from distvae.system.files import sha256
from distvae.system.progress_bar import Progress
from distvae.system.roles import Role


@dataclass(frozen=True)
class GainOverBaseline(Findings):
    """Contents of ``gain.json``. Values of two models are those of the model, then those of the baseline.

    Attributes:
        split: whose sentences were scored.
        seed: of all draws.
        samples: K.
        names: of the two models.
        models: SHA-256 of their weights.
        gain: in nats.
    """

    split: str
    seed: int
    samples: int
    names: tuple[str, ...]
    models: tuple[str, ...]
    gain: Gain


def check_comparable(model: Found, baseline: Found) -> None:
    """Check that the NLLs of two models of the same text can be compared, token by token.

    Raises:
        UserError: one is an autoencoder, or they have different vocabularies.
    """
    for found in (model, baseline):
        if found.export.config.autoencoder:
            raise UserError(f"{found.name}: is an autoencoder; its z has no prior, so it has no NLL")
    own, other = (found.export.vocabulary.fingerprint for found in (model, baseline))
    if own != other:
        raise UserError(
            f"{baseline.name}: its vocabulary ({other}) is not that of {model.name} ({own}), so their NLLs cannot be"
            " compared; train both on the same sentences"
        )


def check_own_split(models: Sequence[Found], split: str, overrides: Sequence[str], runtime: Runtime) -> None:
    """Check that the sentences of a split are the same in the trainings of a model and of a baseline, which otherwise
    may have been trained on some of them. Every process must call this.

    Args:
        models: see ``compare``.
        overrides: where the sentences are; see ``own_settings``.

    Raises:
        UserError: they are not, or cannot be read.
    """
    if split not in SPLITS:  # which ``compare`` refuses
        return
    one, other = (
        getattr(own_corpus(found.name, found.export, own_settings(found.export, overrides), runtime), split)
        for found in models
    )
    if not same(one, other):
        model, baseline = models
        keys = differing(*(found.export.config.data for found in models))
        named = ", ".join(f"data.{key}" for key in keys if key not in keys_with(DataConfig, Role.PLACE))
        raise UserError(
            f"{baseline.name}: its {split} sentences are not those of {model.name}, and it may have been trained on"
            f" these: the two differ in {named}; train both on the same splits, or name other text as DATA"
        )


def compare(
    models: Sequence[Found], names: Sequence[str], parts: dict[str, Part], split: str, settings: EvaluationConfig,
    runtime: Runtime,
) -> GainOverBaseline:  # fmt: skip
    """Score the tokens of a split under a model and a baseline. Every process must call this, and gets the same.

    Args:
        models: two of which ``check_comparable`` approves.
        names: of the models, for people.
        settings: K and the seed.

    Raises:
        UserError: there is no such split.
    """
    runtime.agree({"models": [found.name for found in models], "split": split} | asdict(settings))
    if split not in parts:
        raise UserError(f"--split {split}: the sentences have no {split}: they have {', '.join(parts)}")
    sentences = parts[split].sentences
    with Progress("tokens", len(models) * len(sentences), runtime.is_main) as progress:
        model, baseline = (
            token_scores(found.export.model(runtime.device), sentences, settings, runtime, progress.advance)
            for found in models
        )
    return GainOverBaseline(
        split=split,
        seed=settings.seed,
        samples=settings.importance_samples,
        names=tuple(names),
        models=tuple(sha256(found.export.folder / "model.safetensors") for found in models),
        gain=Gain.of(model, baseline),
    )
