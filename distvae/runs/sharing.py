"""Save a trained model as a repository, push it to the hub, and load it from there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from distvae.config.schema import CAPTIONS, Config, DataConfig
from distvae.data import sources
from distvae.data.readers.columns import reason
from distvae.data.vocabulary import TOKENIZER, Vocabulary
from distvae.runs import checkpoints
from distvae.runs.card import model_card, source
from distvae.runs.checkpoints import EXPORT, Weights
from distvae.runs.results import Results, save_results
from distvae.system.errors import UserError
from distvae.system.files import MANIFEST, writing
from distvae.tokenization.pieces import Pretrained

RESULTS, CARD = "results.json", "README.md"


def save(
    folder: Path,
    weights: Weights,
    config: Config,
    vocabulary: Vocabulary,
    results: Results | None,
    license: str | None = None,
    name: str | None = None,
) -> None:
    """Write a model with its results and its card to ``folder``, replacing a model that was there.

    Paths of the machine that trained it are left out.

    Args:
        license, name: see ``model_card``; the name is by default the folder's.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    known = {*EXPORT, TOKENIZER, MANIFEST, RESULTS, CARD}
    with writing(folder):
        others = sorted({path.name for path in folder.iterdir()} - known) if folder.exists() else []
        if others:
            raise UserError(f"{folder}: holds {others[0]}, which is no part of a model; name another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.export(folder, weights, _shared(config), vocabulary)
        if results is not None:
            save_results(folder, replace(results, start=None))
        card = model_card(name or folder.resolve().name, config, vocabulary, results, license)
        (folder / CARD).write_text(card, encoding="utf-8")


def _shared(config: Config) -> Config:
    """Return the config without paths of this machine."""
    data = config.data
    path = data.path if data.path == CAPTIONS or sources.is_hub(data) else source(config)
    tokenizer = data.tokenizer
    if isinstance(tokenizer, Pretrained) and Path(tokenizer.tokenizer_file or "").exists():
        tokenizer = replace(tokenizer, tokenizer_file=Path(tokenizer.tokenizer_file or "").name)
    data = replace(data, path=path, tokenizer=tokenizer, cache=DataConfig().cache)
    return replace(config, data=data, run=None, pretrained=None, resume="auto")


def push(folder: Path, repository: str, private: bool | None, token: str | None) -> str:
    """Upload a saved model to a repository of the hub, which is created if need be. Return its address.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    api = HfApi(token=token)
    with _explained(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a distvae model")
    return str(commit.repo_url)


@contextmanager
def download(
    repository: str, revision: str | None, token: str | None, cache: Path | None, local_only: bool
) -> Iterator[Path]:
    """Download a model into the hub's cache, and yield a folder of its files that lasts as long as the context.

    Raises:
        UserError: there is no such repository or revision, or the hub cannot be reached.
    """
    with _explained(repository, revision):
        snapshot = snapshot_download(
            repository,
            revision=revision,
            token=token,
            cache_dir=cache,
            local_files_only=local_only,
            allow_patterns=[*EXPORT, TOKENIZER, MANIFEST, RESULTS],
        )
    with tempfile.TemporaryDirectory(prefix="distvae-") as work:
        # The cache holds links to files outside the folder, which no export may have.
        folder = shutil.copytree(snapshot, Path(work, "model"))
        yield Path(folder)


@contextmanager
def _explained(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of the hub into a line.

    Raises:
        UserError: for any of them.
    """
    try:
        yield
    except HFValidationError:
        raise UserError(f"{repository}: is no id of a repository; it has the form ORG/NAME") from None
    except GatedRepoError:
        raise UserError(
            f"{repository}: is gated; accept its terms at https://huggingface.co/{repository}, and log in (hf auth"
            " login)"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repository}: has no branch, tag or commit {revision}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{repository}: no such model on the hub; correct the name, or log in if it is private (hf auth login)"
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise UserError(f"{repository}: the hub cannot be used: {reason(error)}") from error
        raise UserError(f"{repository}: the hub refuses; log in with a token that may write (hf auth login)") from None
    except Exception as error:  # of many kinds, also of its HTTP client
        raise UserError(f"{repository}: the hub cannot be used: {reason(error)}") from error
