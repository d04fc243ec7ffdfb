import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.corpora import error_of, prepare, sentences, snli_lines, write_folder

# Pairs in the form of SNLI's own files, of our own writing.
PAIRS = [
    ("Two cooks peel potatoes beside a window.", "The cooks are busy."),
    ("Two cooks peel potatoes beside a window.", "Nobody is near the window."),
    ("A violinist naps on a night train to Oslo with her shoes off and a scarf over her eyes.", "She is asleep."),
    ("A violinist naps on a night train to Oslo with her shoes off and a scarf over her eyes.", "   "),
]


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt.gz", ".jsonl.gz", ".JSON.gz", ".csv.gz"]
)
def test_kinds_of_files(tmp_path, suffix):
    # "None", "NA" and "12" are words, and a sentence may hold commas, quotes and line breaks.
    rows = ["None", "NA", "12", 'He said "go", and\nwent', "Élan"]
    if suffix.startswith(".txt"):
        rows[3] = 'He said "go", and went'
    folder = tmp_path / "folder [of] *"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        path = folder / f"{split}{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"n": range(5), "text": rows}), path)
            continue
        if suffix == ".json":
            content = json.dumps([{"text": row} for row in rows], indent=1)
        elif "json" in suffix.lower():
            content = "".join(json.dumps({"n": [1], "text": row}) + "\n" for row in rows)
        elif "csv" in suffix:
            content = "n,text\n" + "".join('{},"{}"\n'.format(n, row.replace('"', '""')) for n, row in enumerate(rows))
        else:
            content = "\n".join(rows)
        content = content.encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    prepared = prepare(tmp_path, path=str(folder))
    for split in ("train", "valid", "test"):
        assert sentences(prepared, split) == ["None", "NA", "12", 'He said ▁"￭ go " , and went', "Élan"]


def test_snli_folder(tmp_path):
    folder = tmp_path / "snli_1.0"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"snli_1.0_{name}.jsonl").write_text(snli_lines(PAIRS), encoding="utf-8")
        (folder / f"snli_1.0_{name}.txt").write_text("gold_label\tsentence1\n", encoding="utf-8")
        (folder / f"._snli_1.0_{name}.jsonl").write_bytes(b"\x00")
    (folder / "README.txt").write_text("Read me.", encoding="utf-8")
    prepared = prepare(
        tmp_path, path=str(folder), columns=("sentence1", "sentence2"), max_words=12, distinct=True, train_size=100
    )
    expected = ["Two cooks peel potatoes beside a window .", "The cooks are busy .", "Nobody is near the window ."]
    for split in ("train", "valid", "test"):
        assert sentences(prepared, split) == [*expected, "She is asleep ."]
    left_out = "1 empty line, 2 sentences of more than 12 words, 1 repeated sentence left out"
    shortage = "train: 4 sentences, fewer than the 100 requested"
    assert prepared.notes[:-1] == (f"train: {left_out}", f"valid: {left_out}", f"test: {left_out}", shortage)


@pytest.mark.parametrize("path", ["no/such", "someone/dataset", "~/no/such/folder"])
def test_missing_path(tmp_path, path):
    message = error_of(tmp_path, path=path)
    assert message.startswith(f"data.path={path}: no such file or folder")
    assert ("HF_HUB_OFFLINE is set" if path[0] != "~" else "captions") in message


def test_missing_and_ambiguous_splits(tmp_path):
    folder = Path(write_folder(tmp_path / "text"))
    (folder / "valid.txt").rename(folder / "rest.txt")
    assert "text: has no file for valid, such as valid.txt" in error_of(tmp_path, path=str(folder))
    (folder / "rest.txt").rename(folder / "validation.txt")
    (folder / "my-dev-set.txt.gz").write_bytes(gzip.compress(b"a dog\n"))
    message = error_of(tmp_path, path=str(folder))
    assert "has several files for valid: my-dev-set.txt.gz, validation.txt; keep one, or pool" in message
    (folder / "my-dev-set.txt.gz").unlink()
    (folder / "test.txt").rename(folder / "test_of_train.txt")
    (folder / "train.txt").unlink()
    assert "test_of_train.txt: is it train or test?" in error_of(tmp_path, path=str(folder))


def test_unknown_kind_of_file(tmp_path):
    for name in ("sentences.doc", "sentences.parquet.gz", "sentences"):
        (tmp_path / name).write_text("a dog\n", encoding="utf-8")
        assert f"{name}: has an unsupported file type (.txt, .jsonl" in error_of(tmp_path, path=str(tmp_path / name))
