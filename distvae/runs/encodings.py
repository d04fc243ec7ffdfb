"""The posteriors of sentences as a Parquet file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from torch import Tensor

from distvae.data.new_text import Part
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.runtime import Runtime
from distvae.evaluation.encoding import posteriors
from distvae.methods.kl import kl_per_dimension
from distvae.model.vae import TextVAE
from distvae.runs.results import LABEL
from distvae.system.files import temporary, writing


def write_encodings(
    path: Path,
    model: TextVAE,
    parts: dict[str, Part],
    vocabulary: Vocabulary,
    runtime: Runtime,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode all sentences and write a row for each, on all ranks together. The file is complete or absent.

    Columns: ``sentence``; ``split``; ``label.NAME`` for each column of labels; ``mean`` and ``log_variance``, lists of
    m values; ``kl``, in nats.

    Args:
        path: the file, which the main process writes.
        on_progress: called with the number of sentences encoded since the last call.

    Raises:
        UserError: the file cannot be written.
    """
    names = list(dict.fromkeys(name for part in parts.values() for name in part.label_names))
    vector = pa.list_(pa.float32(), model.latent_size)
    columns = {
        "sentence": pa.string(), "split": pa.string(), **{f"{LABEL}{name}": pa.string() for name in names},
        "mean": vector, "log_variance": vector, "kl": pa.float32(),
    }  # fmt: skip
    schema = pa.schema(list(columns.items()))
    with ExitStack() as stack:
        file = None
        if runtime.is_main:
            stack.enter_context(writing(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            new = temporary(path)
            stack.callback(new.unlink, missing_ok=True)
            file = stack.enter_context(parquet.ParquetWriter(new, schema))
        for split, part in parts.items():
            first = 0
            for found in posteriors(model, part.sentences, runtime, on_progress):
                rows = slice(first, first + len(found.mean))
                first = rows.stop
                if file is None:
                    continue
                labels = {} if part.labels is None else part.labels[rows]
                kl = kl_per_dimension(found.mean.double(), found.log_variance.double()).sum(dim=1)
                values = {
                    "sentence": part.shown(rows, vocabulary), "split": [split] * len(kl),
                    **{f"{LABEL}{name}": labels.get(name, [None] * len(kl)) for name in names},
                    "mean": _vectors(found.mean), "log_variance": _vectors(found.log_variance), "kl": kl.numpy(),
                }  # fmt: skip
                file.write_table(pa.table(values, schema))
        if file is not None:
            file.close()
            new.replace(path)


def _vectors(values: Tensor) -> pa.Array:
    """Return [n, m] as n lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.float().flatten().numpy()), values.shape[1])
