"""Train text VAEs and use trained ones, from Python."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distvae.config.load import load_config, with_values
from distvae.config.schema import Config
from distvae.data.sentences import Sentences
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.ranks import OneRank
from distvae.evaluation import generation
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.encoding import encode
from distvae.evaluation.generation import interpolation, prior_draws
from distvae.evaluation.mixture import COMPONENTS, Mixture
from distvae.evaluation.probes import check_installed
from distvae.evaluation.scoring import log_likelihoods
from distvae.model.posterior import Posterior
from distvae.runs import finding, reading
from distvae.runs.finding import Found
from distvae.runs.results import Results
from distvae.runs.sampling import fit_mixture
from distvae.system.errors import UserError, reason
from distvae.system.progress_bar import Progress
from distvae.system.settings import whole

if TYPE_CHECKING:  # takes a second to import
    from datasets import Dataset, DatasetDict
    from numpy.typing import ArrayLike


class TextModel:
    """A trained model: a VAE, an autoencoder or a language model.

    Long inputs are processed in batches, so that memory does not grow with them, and show a progress bar on a terminal.
    Tensors that methods return are in CPU memory; those that they take may be anywhere.

    Attributes:
        config: the settings that it was trained with.
        vocabulary: its tokens and its tokenizer.
        model: the module, in evaluation mode.
        device: where it computes.
        results: the scores of the run's test sentences; None if there are none.

    Args:
        found: its files.
        device: default: the GPU if there is one.

    Raises:
        UserError: weights, config and vocabulary do not match, or there is no such device.
    """

    def __init__(self, found: Found, device: torch.device | str | None = None):
        self.device = _device(device)
        self.model = found.export.model(self.device)
        self.config: Config = found.export.config
        self.vocabulary: Vocabulary = found.export.vocabulary
        self.results = found.results
        self._name = found.name
        self._mixtures: dict[tuple[int, int], Mixture] = {}

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"TextModel({self._name!r}, latent_size={model.latent_size}, hidden_size={model.hidden_size},"
            f" vocabulary of {len(self.vocabulary):,} by {self.vocabulary.tokenizer}, on {self.device})"
        )

    def encode(self, sentences: Iterable[str]) -> Posterior:
        """Return q(z|x) of each sentence: ``mean`` and ``log_variance``, [n, m] each.

        Raises:
            UserError: the model is a language model, or its vocabulary is closed and lacks a word.
        """
        self._need_z("encode")
        ids = self._ids(sentences)
        with Progress("encode", len(ids), shown=True) as progress:
            return encode(self.model, ids, progress.advance)

    def decode(self, z: ArrayLike | Tensor, method: str | None = None, **options: Any) -> list[str]:
        """Decode a sentence for each z: [n, m], or [m] for one.

        Args:
            z: a tensor, an array or lists, which are taken as float32.
            method: ``greedy`` (the default; of a language model, ``sample``), ``sample`` or ``beam``.
            options: of the method, the fields of ``Decoding``: temperature, top_k, top_p, beam_size, max_tokens, seed.

        Raises:
            UserError: z is not numeric, has another size or is not finite, or an option is unknown, out of range or of
                another method.
        """
        m = self.model.latent_size
        rows = self._as_z(z)
        rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != m:
            raise UserError(f"z: has the shape {list(rows.shape)}, and should have [n, {m}]")
        if not rows.isfinite().all():
            raise UserError("z: is not finite")
        decoding = self.decoding(method, **options)
        with Progress("decode", len(rows), shown=True) as progress:
            return generation.decode(self.model, rows, self.vocabulary, decoding, progress.advance)

    def decoding(self, method: str | None = None, **options: Any) -> Decoding:
        """Return how ``decode`` decodes with these options."""
        known = [field.name for field in dataclasses.fields(Decoding)]
        for name in options:
            if name not in known:
                raise UserError(f"{name}: is not an option of decoding; the options are {', '.join(known)}")
        default = "sample" if self.config.language_model else Decoding.method
        return Decoding(**options | {"method": method or default})

    def sample(
        self,
        count: int = 1,
        seed: int = 0,
        method: str | None = None,
        prior: str = "normal",
        components: int | None = None,
        **options: Any,
    ) -> list[str]:
        """Decode draws from the prior. More draws begin with those of fewer.

        Args:
            count: number of draws, at least 1.
            seed: of the prior and of the method ``sample``.
            method, options: see ``decode``.
            prior: ``normal``, N(0, I); or ``mixture``, Gaussians that are fitted to z of the training sentences. These
                are read again, and scikit-learn fits them.
            components: number of Gaussians of a mixture; default 10.

        Raises:
            UserError: as ``decode`` and ``prior``.
        """
        count = whole("count", count, 1)
        seed = self.decoding(method, seed=seed, **options).seed  # before a mixture is fitted, which takes long
        fitted = self.prior(prior, components, seed)
        z = prior_draws(self.model, count, seed) if fitted is None else fitted.draws(count, seed)
        return self.decode(z, method, seed=seed, **options)

    def prior(self, name: str = "mixture", components: int | None = None, seed: int = 0) -> Mixture | None:
        """Return the density that ``sample`` draws from: a mixture, with ``log_density`` and ``draws``; None: N(0, I).

        Args:
            seed: of the fit.

        Raises:
            UserError: the prior has another name or no components, the model has no z, the training sentences are not
                available, or scikit-learn is missing.
        """
        if name not in ("normal", "mixture"):
            raise UserError(f"prior {name!r}: should be normal or mixture")
        if name == "normal":
            if components is not None:
                raise UserError(f"components {components}: belongs to the prior mixture, not to normal")
            return None
        self._need_z("fit a mixture to")
        count = COMPONENTS if components is None else whole("components", components, 1)
        wanted = count, whole("seed", seed, 0, None)
        check_installed("a mixture as the prior")
        if wanted not in self._mixtures:
            train = reading.own_corpus_alone(self._name, self.vocabulary, self.config.data).train.in_memory()
            self._mixtures[wanted] = fit_mixture(self.model, train, *wanted)
        return self._mixtures[wanted]

    def reconstruct(self, sentences: Iterable[str], method: str | None = None, **options: Any) -> list[str]:
        """Decode the posterior mean of each sentence. ``method`` and ``options``: see ``decode``."""
        return self.decode(self.encode(sentences).mean, method, **options)

    def interpolate(
        self,
        start: str | ArrayLike | Tensor,
        end: str | ArrayLike | Tensor,
        steps: int = 9,
        method: str | None = None,
        **options: Any,
    ) -> list[str]:
        """Decode points on a line in latent space, both ends included (paper, Table 2).

        Args:
            start, end: a sentence, whose posterior mean it is, or z [m].
            steps: number of points, at least 2.
            method, options: see ``decode``.

        Raises:
            UserError: as ``encode`` and ``decode``.
        """
        steps = whole("steps", steps, 2)
        self._need_z("interpolate")
        ends = [self.encode([end]).mean[0] if isinstance(end, str) else self._as_z(end).cpu() for end in (start, end)]
        for z in ends:
            if z.shape != (self.model.latent_size,):
                raise UserError(f"z: has the shape {list(z.shape)}, and should have [{self.model.latent_size}]")
        return self.decode(interpolation(ends[0], ends[1], steps), method, **options)

    def log_likelihood(self, sentences: Iterable[str], samples: int | None = None, seed: int | None = None) -> Tensor:
        """Return log p(x) of each sentence in nats: [n], float64.

        It is the importance-weighted estimate, a lower bound in expectation (Burda et al., 2016); of a language model,
        the exact value. A word outside the vocabulary counts as its class of unknown words.

        Args:
            samples: K; default: ``evaluation.importance_samples`` of the run's config.
            seed: of the draws; default: that of the run's config.

        Raises:
            UserError: the model is an autoencoder, whose z has no prior, or its vocabulary is closed and lacks a word;
                or it is a language model, and ``samples`` or ``seed`` is given, which it does not use.
        """
        if self.config.autoencoder:
            raise UserError(f"{self._name}: is an autoencoder; its z has no prior, so it has no log-likelihood")
        if self.config.language_model:
            for option, value in (("samples", samples), ("seed", seed)):
                if value is not None:
                    raise UserError(f"{option}: {self._name} is a language model; it draws no z, and its NLL is exact")
        settings = with_values(self.config.evaluation, importance_samples=samples, seed=seed)
        ids = Sentences.of(self._ids(sentences))
        with Progress("log-likelihood", len(ids), shown=True) as progress:
            found = log_likelihoods(self.model, ids, settings, OneRank(self.device), progress.advance)
        return torch.from_numpy(found)

    def save_pretrained(self, folder: str | PathLike[str], license: str | None = None) -> None:
        """Write the model to a folder, for ``load`` and for the hub: weights, config, tokens, results and a model card.

        Args:
            license: the hub's name of a licence, such as ``mit``, for the card; None leaves it to you.

        Raises:
            UserError: the folder holds something else, or cannot be written.
        """
        self._save(Path(_text_of("folder", folder)), license, None)

    def push_to_hub(
        self, repository: str, private: bool | None = None, license: str | None = None, token: str | None = None
    ) -> str:
        """Upload the model to a repository of the hub, ``ORG/NAME``, which is created if need be. Return its address.

        Args:
            private: of a new repository; None: as the organisation's default.
            license: see ``save_pretrained``.
            token: default: that of ``hf auth login``.

        Raises:
            UserError: the hub refuses or cannot be reached.
        """
        from distvae.runs.sharing import push

        with tempfile.TemporaryDirectory(prefix="distvae-") as work:
            folder = Path(work, "model")
            self._save(folder, license, repository)
            return push(folder, repository, private, token)

    def _save(self, folder: Path, license: str | None, name: str | None) -> None:
        from distvae.runs.sharing import save

        weights = {key: value.cpu().contiguous() for key, value in self.model.state_dict().items()}
        save(folder, weights, self.config, self.vocabulary, self.results, license, name)

    def _ids(self, sentences: Iterable[str]) -> list[list[int]]:
        if isinstance(sentences, str):
            raise UserError("sentences: is one text; pass a list of sentences")
        if isinstance(sentences, Mapping) or not isinstance(sentences, Iterable):
            raise UserError(f"sentences: is {type(sentences).__name__}; pass a list of sentences")
        texts = list(sentences)  # an iterator yields them only once
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"sentences[{number}]: is {type(text).__name__}, and should be text")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(f"sentences[{number}]: has half of a surrogate pair; decode it from UTF-8") from None
        return [self.vocabulary.ids(text.strip()) for text in texts]

    def _as_z(self, z: ArrayLike | Tensor) -> Tensor:
        """Return z as float32 where the model is, whatever its shape."""
        if isinstance(z, Posterior):
            raise UserError("z: is what encode returns; decode its mean, encode(sentences).mean")
        try:
            return torch.as_tensor(z).detach().to(self.device, self.model.decoder.output.weight.dtype)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"z: is {type(z).__name__}, and should be numbers [n, {self.model.latent_size}]") from None

    def _need_z(self, action: str) -> None:
        if self.config.language_model:
            raise UserError(f"{self._name}: is a language model; it has no latent variable to {action}")


def load(path: str | PathLike[str], device: torch.device | str | None = None) -> TextModel:
    """Load a trained model.

    Args:
        path: a run folder, or an exported ``best/`` folder.
        device: default: the GPU if there is one.

    Raises:
        UserError: (a ``ValueError``) there is no model or no such device, or a file is missing or damaged.
    """
    return TextModel(finding.of_folder(_text_of("path", path)), device)


def from_pretrained(
    repository: str,
    revision: str | None = None,
    device: torch.device | str | None = None,
    token: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> TextModel:
    """Load a model from the hub, or from a folder that ``save_pretrained`` wrote.

    Args:
        repository: ``ORG/NAME``, or a folder.
        revision: branch, tag or commit; default: the newest commit of ``main``.
        device: see ``load``.
        token, cache_dir, local_files_only: as in ``huggingface_hub.snapshot_download``.

    Raises:
        UserError: there is no such repository or revision, it holds no model of distvae, or the hub cannot be reached.
    """
    if Path(_text_of("repository", repository)).is_dir():
        return load(repository, device)
    cache = None if cache_dir is None else Path(cache_dir)
    return TextModel(finding.of_hub(repository, revision, token, cache, local_files_only), device)


def fit(
    config: str | PathLike[str], settings: Mapping[str, str | PathLike[str] | Dataset | DatasetDict | Any] | None = None
) -> Results:
    """Train and score a config, as ``distvae/train.py`` does. A run that has begun resumes.

    Args:
        config: a YAML file, such as ``configs/own.yaml``.
        settings: values of keys, such as ``{"kl.target_rate": 6, "run": "runs/six"}``. ``data.path`` may also be a
            ``datasets.Dataset``, or a ``DatasetDict`` of splits; it is stored in ``data.cache``.

    Returns:
        The scores of the test split. The model is in the run folder: ``load(folder)``.

    Raises:
        UserError: (a ``ValueError``) a setting or the data is wrong, or numbers are no longer finite.
    """
    config, settings = _text_of("config", config), {} if settings is None else settings
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise UserError('settings: should be values by key, such as {"kl.target_rate": 6, "run": "runs/six"}')
    from distvae.train import train  # late, because it takes seconds to import what trains

    given = {key: fspath(value) if isinstance(value, PathLike) else value for key, value in settings.items()}
    rows = given.get("data.path")
    if rows is None or isinstance(rows, str):
        return train(load_config(config, given))
    from distvae.data.objects import store

    found = load_config(config, given | {"data.path": "a dataset"})
    return train(dataclasses.replace(found, data=dataclasses.replace(found.data, path=str(store(rows, found.data)))))


def _text_of(name: str, path: str | PathLike[str]) -> str:
    try:
        text = fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise UserError(f"{name}: is {type(path).__name__}, and should be a path")
    return text


def _device(device: torch.device | str | None) -> torch.device:
    """Return a device that is available; None: the GPU if there is one."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (TypeError, RuntimeError, AssertionError) as error:  # AssertionError: PyTorch has no CUDA
        raise UserError(f"device {name}: cannot be used: {reason(error)}; pass cpu, or cuda with a GPU") from None
    return found
