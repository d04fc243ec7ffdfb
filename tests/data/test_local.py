import gzip
import json
import lzma
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.feather
import pytest

from distvae.data import corpus
from tests.data.corpora import error_of, prepare, sentences, write_folder

ROWS = [f"dog {i}" for i in range(30)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".xz": lzma.compress}


def everything(prepared) -> list[str]:
    return sorted(sentence for split in corpus.SPLITS for sentence in sentences(prepared, split))


def lines(rows=ROWS) -> bytes:
    return "".join(json.dumps({"text": row, "n": 1}) + "\n" for row in rows).encode()


@pytest.mark.parametrize("packed", PACKED)
def test_compressed_files(tmp_path, packed):
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(PACKED[packed](lines()) + PACKED[packed](lines(["cat 1"])))  # as `cat` joins them
    assert len(everything(prepare(tmp_path, path=str(path), unk="single"))) == 31


@pytest.mark.parametrize("packed", [".gz", ".zst", ".xz"])
@pytest.mark.parametrize(
    "damage", [lambda packed: packed[: len(packed) // 2], lambda packed: b"a dog\n", lambda packed: packed + b"junk"]
)
def test_damaged_compressed_files(tmp_path, packed, damage):
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(damage(PACKED[packed](b"".join(b"dog %d\n" % i for i in range(9999)))))
    assert f"a.txt{packed}: cannot be unzipped: " in error_of(tmp_path, path=str(path))


def test_an_xz_file_that_is_padded(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress("\n".join(ROWS).encode()) + bytes(10_000))
    assert len(everything(prepare(tmp_path, path=str(path)))) == 30


def test_zstd_that_arrow_lacks(tmp_path, monkeypatch):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstd(b"a dog\n"))
    codec = SimpleNamespace(is_available=lambda name: False)
    monkeypatch.setattr("distvae.data.readers.lines.pa", SimpleNamespace(Codec=codec))
    assert "has no zstd; install pyarrow from PyPI, or unpack the file" in error_of(tmp_path, path=str(path))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files(tmp_path, kind):
    path = tmp_path / "a.arrow"
    table = pa.table({"n": [[1]] * 30, "text": pa.array(ROWS).dictionary_encode()})
    if kind == "file":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, 7)
    assert len(everything(prepare(tmp_path, path=str(path)))) == 30
    message = error_of(tmp_path / "other", path=str(path), columns=("n",))
    assert "a.arrow: column n holds list<" in message
    path.write_bytes(path.read_bytes()[:100])
    assert "a.arrow: is not Arrow: " in error_of(tmp_path / "other", path=str(path))


def test_a_pattern_pools_files(tmp_path):
    for number in range(3):
        (tmp_path / f"2024-{number}.jsonl").write_bytes(lines(ROWS[10 * number : 10 * number + 10]))
    pattern = str(tmp_path / "2024-*.jsonl")
    prepared = prepare(tmp_path, path=pattern, unk="single")
    assert [len(getattr(prepared, split)) for split in corpus.SPLITS] == [24, 3, 3]
    before = prepare(tmp_path, path=pattern).fingerprint
    (tmp_path / "2024-3.jsonl").write_bytes(lines(["cat"]))
    assert prepare(tmp_path, path=pattern).fingerprint != before


def test_a_pattern_of_named_splits(tmp_path):
    for name in ("train-00000", "train-00001", "test-00000"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines([f"{name} {i}" for i in range(10)]))
    prepared = prepare(tmp_path, path=str(tmp_path / "*.jsonl"))
    assert [len(getattr(prepared, split)) for split in corpus.SPLITS] == [18, 2, 10]
    assert prepared.notes[0] == "valid: 2 sentences cut from train, because there is no such split"


def test_patterns_without_files(tmp_path):
    assert "no file matches; quote the pattern" in error_of(tmp_path, path=str(tmp_path / "*.jsonl"))
    (tmp_path / "a.doc").touch()
    assert "matches a.doc, which has an unsupported file type" in error_of(tmp_path, path=str(tmp_path / "a.*"))


LABELLED = datasets.Dataset.from_dict(
    {"text": ROWS, "intent": [i % 2 for i in range(30)]},
    features=datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=["ask", "tell"])}
    ),
)


def test_saved_datasets(tmp_path):
    LABELLED.save_to_disk(tmp_path / "saved", num_shards=3)
    prepared = prepare(tmp_path, path=str(tmp_path / "saved"), label="intent")
    assert [len(getattr(prepared, split)) for split in corpus.SPLITS] == [24, 3, 3]
    assert set(prepared.labels["train"]["intent"]) == {"ask", "tell"}
    parts = {"train": LABELLED, "extra": LABELLED.select(range(4)), "test": LABELLED.select(range(5))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    prepared = prepare(tmp_path, path=str(tmp_path / "splits"), split=("train", "extra", "test"), label="intent")
    assert sentences(prepared, "valid") == ROWS[:4]
    assert prepared.labels["test"].to_dict() == {"intent": ["ask", "tell", "ask", "tell", "ask"]}
    assert "has no split dev" in error_of(tmp_path / "a", path=str(tmp_path / "splits"), split=("train", "dev"))
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    assert "lacks files that its state.json lists" in error_of(tmp_path / "a", path=str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert "state.json: does not list data_files" in error_of(tmp_path / "a", path=str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset": "a"}, "data.subset: is for datasets of the hub"),
        ({"revision": "main"}, "data.revision: is for datasets of the hub"),
        ({"split": ("train",)}, "data.split: is for the hub and for save_to_disk"),
        ({"group": "text"}, "data.group=text: is a column of sentences"),
    ],
)
def test_settings_that_local_files_do_not_read(tmp_path, settings, message):
    path = write_folder(tmp_path / "text")
    assert message in error_of(tmp_path, path=path, **settings)
    assert message in error_of(tmp_path, path=str(Path(path) / "train.txt"), **settings)


@pytest.mark.parametrize("path", ["https://example.org/a.txt", "hf://datasets/a/b", "s3://a/b.jsonl"])
def test_a_url_is_no_file(tmp_path, path):
    assert error_of(tmp_path, path=path) == (
        f"data.path={path}: is a URL; download the files, or pass ORG/NAME of a dataset of the hub"
    )
