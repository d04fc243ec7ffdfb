"""``python -m tests.faults.schemas --seed 0 --count 100``: read files whose columns change from row to row.

Each case is a folder with one file per split, in random formats. The types of unused columns change within the file;
the wanted columns are null or absent at first, and hold numbers, dates, quotes and separators. The expected sentences,
or a refusal, are known exactly. Anything else is a fault, and so is a changed byte of the files.
"""

from __future__ import annotations

import argparse
import collections
import csv
import datetime
import gzip
import hashlib
import io
import json
import lzma
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distvae.config.schema import DataConfig
from distvae.data import corpus
from distvae.data.vocabulary import Vocabulary
from distvae.system.errors import UserError
from distvae.tokenization import BUILT_IN

ABSENT = object()

NAMES = ["text", "sentence 1", "título", "a.b", "Text", "0", "x;y", "text,2", 'a "b"']
WORDS = ["a", "dog", "Oslo", "runs", "isn't", "12", "Élan", "日本", "😀", "U.S.", "and/or", "e-mail", "."]
ODD = [
    "None", "NA", "nan", "null", "true", "2020-01-01", "2020-01-01T00:00:00Z", "12", "1e5", "0x1F", "-", "a, b; c | d",
    'He said "go".', '"quoted"', "it''s", "two\nlines", "cr\r\nlf", "a\ttab", "\\n \\u0041", "{\"a\": 1}", "[1]", "#x",
    "\u200bzero\u200bwidth", "line\u2028separator", "x" * 140_000,
]  # fmt: skip
EMPTY = ["", " ", "\t", "\u200b", "\ufeff \u2060", "\u3164"]


def _zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


# The values of unused columns: functions that draw one.
VALUES: dict[str, Callable[[random.Random], Any]] = {
    "null": lambda noise: None,
    "absent": lambda noise: ABSENT,
    "bool": lambda noise: noise.random() < 0.5,
    "int": lambda noise: noise.randrange(-9, 9),
    "huge": lambda noise: noise.randrange(10**30),
    "float": lambda noise: noise.random(),
    "not a number": lambda noise: float("nan"),
    "text": lambda noise: noise.choice(WORDS),
    "date": lambda noise: f"2020-01-{noise.randrange(1, 29):02}",
    "list": lambda noise: [noise.randrange(9) for _ in range(noise.randrange(3))],
    "list of text": lambda noise: [noise.choice(WORDS)],
    "nested list": lambda noise: [[], [None, [1.5]]],
    "object": lambda noise: {"a": noise.randrange(9)},
    "another object": lambda noise: {"b": {"text": [noise.random()]}},
}
# The same for Parquet, where a column has one type.
TYPES: list[tuple[pa.DataType, Callable[[random.Random], Any]]] = [
    (pa.null(), VALUES["null"]),
    (pa.bool_(), VALUES["bool"]),
    (pa.int64(), VALUES["int"]),
    (pa.float32(), VALUES["float"]),
    (pa.string(), VALUES["text"]),
    (pa.binary(), lambda noise: noise.randbytes(3)),
    (pa.date32(), lambda noise: datetime.date(2020, 1, noise.randrange(1, 29))),
    (pa.timestamp("ns"), lambda noise: noise.randrange(10**9)),
    (pa.list_(pa.int32()), VALUES["list"]),
    (pa.struct([("a", pa.int64())]), VALUES["object"]),
    (pa.map_(pa.string(), pa.int64()), lambda noise: [("a", 1)]),
]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
SUFFIXES = [".jsonl", ".jsonl.gz", ".json", ".json.xz", ".csv", ".csv.gz", ".tsv", ".tsv.zst", ".parquet", ".arrow"]


@dataclass(frozen=True)
class CaseOutcome:
    """The result of a case: its formats, whether it should be refused, and its fault ("" for none)."""

    formats: tuple[str, str, str]
    refused: bool
    fault: str


class _File:
    """A random file of one split."""

    def __init__(self, noise: random.Random, suffix: str, columns: list[str], spoilt: bool):
        self.noise, self.suffix, self.columns = noise, suffix, columns
        self.rows = noise.choice([5, 40, 300, 2000, 12_000 if len(columns) == 1 else 40])
        self.wanted = {column: self._wanted() for column in columns}
        # A column of Parquet or separated values cannot hold a list in a single row.
        self.spoilt = spoilt and suffix.startswith(".json")
        if self.spoilt:
            self.wanted[columns[0]][noise.randrange(self.rows)] = noise.choice([["a"], {"a": "b"}, []])

    def _wanted(self) -> list:
        """Draw a column with sentences: missing at first, then mixed."""
        noise, cells = self.noise, []
        first = noise.choice([0, 0, self.rows // 2, self.rows - 1])
        numbers = self.suffix.startswith(".json") and noise.random() < 0.5
        for row in range(self.rows):
            kind = noise.random()
            if row < first or kind < 0.05:
                cells.append(noise.choice([None, ABSENT]))
            elif kind < 0.1:
                cells.append(noise.choice(EMPTY))
            elif kind < 0.12 and numbers:
                cells.append(noise.choice([12, 4.5, True, 10**25]))
            elif kind < 0.2:
                cells.append(noise.choice(ODD[:-1] if row % 50 else ODD))
            else:
                cells.append(" ".join(noise.choices(WORDS, k=noise.randrange(1, 8))))
        cells[-1] = "The end ."
        return cells

    def _unused(self) -> dict[str, list]:
        """Draw columns that change their type once or twice."""
        columns = {}
        for i in range(self.noise.randrange(6)):
            kinds = self.noise.choices(list(VALUES), k=3)
            turns = sorted(self.noise.choices([1, self.rows // 2, self.rows - 1, self.rows], k=2))
            columns[f"unused {i}"] = [
                VALUES[kinds[sum(row >= turn for turn in turns)]](self.noise) for row in range(self.rows)
            ]
        return columns

    def sentences(self) -> list[str]:
        """Return the expected sentences, column after column."""
        cells = [cell for column in self.columns for cell in self.wanted[column]]
        texts = [cell if isinstance(cell, str) else json.dumps(cell) for cell in cells if cell not in (None, ABSENT)]
        return [text for text in texts if text not in EMPTY]

    def content(self) -> bytes:
        content = {
            ".jsonl": self._json_lines,
            ".json": self._json,
            ".csv": self._separated,
            ".tsv": self._separated,
            ".parquet": self._parquet,
            ".arrow": self._arrow,
        }[re.sub(r"\.(gz|xz|zst)$", "", self.suffix)]()
        content = content if isinstance(content, bytes) else content.encode()
        pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": _zstd}.get(self.suffix.rpartition(".")[2], bytes)
        return pack(content)

    def _objects(self) -> list[dict]:
        columns = list({**self._unused(), **self.wanted}.items())
        self.noise.shuffle(columns)
        return [{name: cells[row] for name, cells in columns if cells[row] is not ABSENT} for row in range(self.rows)]

    def _json_lines(self) -> str:
        end, ascii_only = self.noise.choice(["\n", "\r\n", "\n\n"]), self.noise.random() < 0.5
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in self._objects()]
        return self.noise.choice(["", "\ufeff"]) + end.join(lines) + self.noise.choice(["", end])

    def _json(self) -> str:
        form = self.noise.choice(["list", "pretty", "objects", "columns"])
        if form == "columns" and not self.spoilt:
            missing = {ABSENT: None}
            columns = {name: [missing.get(cell, cell) for cell in cells] for name, cells in self.wanted.items()}
            return json.dumps({"unused": [[1], "x", None], **columns})
        if form == "objects":
            return "\n".join(json.dumps(row) for row in self._objects())
        return json.dumps(self._objects(), indent=1 if form == "pretty" else None)

    def _separated(self) -> str:
        wanted = {
            name: ["" if cell in (None, ABSENT) else cell for cell in cells] for name, cells in self.wanted.items()
        }
        others = self._unused()
        unused = {name: ["" if cell is ABSENT else str(cell) for cell in cells] for name, cells in others.items()}
        columns = list({**unused, **wanted, "": list(map(str, range(self.rows)))}.items())
        self.noise.shuffle(columns)
        file = io.StringIO()
        writer = csv.writer(
            file,
            delimiter=self.noise.choice(",;\t|"),
            quoting=self.noise.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
            lineterminator=self.noise.choice(["\n", "\r\n"]),
        )
        writer.writerow([name for name, _ in columns])
        writer.writerows(zip(*(cells for _, cells in columns), strict=True))
        return self.noise.choice(["", "\ufeff"]) + file.getvalue()

    def _parquet(self) -> bytes:
        file = io.BytesIO()
        pq.write_table(self._table(), file, row_group_size=self.noise.choice([1000, 10**6]))
        return file.getvalue()

    def _arrow(self) -> bytes:
        file, table = io.BytesIO(), self._table()
        new = self.noise.choice([pa.ipc.new_file, pa.ipc.new_stream])
        with new(file, table.schema) as writer:
            writer.write_table(table, self.noise.choice([1000, 10**6]))
        return file.getvalue()

    def _table(self) -> pa.Table:
        arrays = {}
        for name, cells in self.wanted.items():
            cells = pa.array([None if cell is ABSENT else cell for cell in cells], pa.string())
            arrays[name] = cells.cast(self.noise.choice(TEXTS))
        for i in range(self.noise.randrange(6)):
            kind, draw = self.noise.choice(TYPES)
            arrays[f"unused {i}"] = pa.array([draw(self.noise) for _ in range(self.rows)], kind)
        metadata = self.noise.choice([None, {"huggingface": "{broken"}, {"pandas": "[]"}])
        return pa.table(dict(self.noise.sample(list(arrays.items()), len(arrays)))).replace_schema_metadata(metadata)


def carry_out(seed: int, number: int, folder: Path) -> CaseOutcome:
    """Run a case in an empty folder."""
    noise = random.Random(f"{seed} {number}")
    columns = noise.sample(NAMES, noise.choice([1, 1, 2, 3]))
    spoilt = noise.random() < 0.1
    suffixes = [noise.choice(SUFFIXES) for _ in corpus.SPLITS]
    files = {
        split: _File(noise, suffix, columns, spoilt) for split, suffix in zip(corpus.SPLITS, suffixes, strict=True)
    }
    source = folder / "data"
    source.mkdir()
    names = {"valid": noise.choice(["valid", "val", "dev", "validation"])}
    for split, file in files.items():
        (source / f"{names.get(split, split)}{file.suffix}").write_bytes(file.content())
    before = _state(source)
    data = DataConfig(path=str(source), columns=tuple(columns), min_count=1, workers=1, cache=str(folder / "cache"))
    refused = any(file.spoilt for file in files.values())
    try:
        fault = _differences(corpus.load(corpus.prepare(data, progress=False)), files)
        fault = "was not refused" if refused else fault
    except UserError as error:
        fault = "" if refused and " holds a" in str(error) and "\n" not in str(error) else f"was refused: {error}"
    except Exception:
        fault = traceback.format_exc()
    if _state(source) != before:
        fault += " changed a file"
    return CaseOutcome(tuple(suffixes), refused, fault and f"case {number}, {columns} of {suffixes}: {fault}")


def _differences(prepared: corpus.Corpus, files: dict[str, _File]) -> str:
    right = {
        split: [BUILT_IN["words"].tokenize(sentence) for sentence in file.sentences()] for split, file in files.items()
    }
    counts = collections.Counter(word for words in right["train"] for word in words)
    vocabulary = Vocabulary.build(counts, 1, "classes", "words")
    if prepared.vocabulary != vocabulary:
        return "a different vocabulary"
    for split, sentences in right.items():
        read = getattr(prepared, split)
        if len(read) != len(sentences):
            return f"{split}: {len(read)} sentences, not {len(sentences)}"
        for i, words in enumerate(sentences):
            if read[i].tolist() != vocabulary.encode(words):
                return f"{split}, sentence {i}: {vocabulary.decode(read[i])!r}, not {words!r}"
    return ""


def _state(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def campaign(seed: int, count: int) -> list[CaseOutcome]:
    """Run the first cases of a seed."""
    outcomes = []
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="schemas-") as folder:
            outcomes.append(carry_out(seed, number, Path(folder)))
            if outcomes[-1].fault:
                print(outcomes[-1].fault, file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.schemas", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    began = time.monotonic()
    outcomes = campaign(options.seed, options.count)
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    refused = sum(outcome.refused and not outcome.fault for outcome in outcomes)
    read = len(outcomes) - faults - refused
    print(
        f"{len(outcomes)} folders, seed {options.seed}, {time.monotonic() - began:.0f} s: {read} read exactly,"
        f" {refused} refused in one line as expected, {faults} with a fault"
    )
    formats = collections.Counter(suffix for outcome in outcomes for suffix in outcome.formats)
    print("files:", ", ".join(f"{count} {suffix}" for suffix, count in sorted(formats.items())))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
