"""Models on the hub: download one, and explain what the hub answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from distvae.data.vocabulary import TOKENIZER
from distvae.runs.finding import EXPORT, RESULTS
from distvae.system.errors import UserError, reason
from distvae.system.files import MANIFEST


@contextmanager
def download(
    repository: str, revision: str | None, token: str | None, cache: Path | None, local_only: bool
) -> Iterator[Path]:
    """Download a model into the hub's cache, and yield a folder of its files that lasts as long as the context.

    Raises:
        UserError: there is no such repository or revision, or the hub cannot be reached.
    """
    with explained(repository, revision):
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
def explained(repository: str, revision: str | None = None) -> Iterator[None]:
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
