"""Save a trained model as a repository, and push it to the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi

from distvae.config.schema import CAPTIONS, Config, DataConfig
from distvae.data import sources
from distvae.data.vocabulary import TOKENIZER, Vocabulary
from distvae.runs import checkpoints
from distvae.runs.card import model_card, source
from distvae.runs.checkpoints import Weights
from distvae.runs.finding import EXPORT, RESULTS
from distvae.runs.hub import explained
from distvae.runs.results import Results, save_results
from distvae.system.errors import UserError
from distvae.system.files import MANIFEST, writing
from distvae.tokenization.pieces import Pretrained

CARD = "README.md"


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
    with explained(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a distvae model")
    return str(commit.repo_url)
