"""Digests of source files, and when one that was kept is used."""

import hashlib
import os

import pytest

from distvae.data import digests
from distvae.system.errors import UserError


@pytest.fixture
def computed(monkeypatch):
    """The files whose digests are computed; each counts as large, and as unchanged for long."""
    paths, real = [], digests.sha256
    monkeypatch.setattr(digests, "LARGE", 0)
    monkeypatch.setattr(digests, "SETTLED", -1)
    monkeypatch.setattr(digests, "sha256", lambda path: paths.append(path.name) or real(path))
    return paths


def written(path, content):
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def test_digests_are_in_the_order_of_the_files(tmp_path):
    files = [written(tmp_path / f"{i}.txt", bytes([i]) * i) for i in range(20)]
    assert digests.digests([path for path, _ in files], tmp_path / "cache") == [digest for _, digest in files]
    assert not (tmp_path / "cache").exists()  # all are small


def test_the_digest_of_an_unchanged_file_is_kept(tmp_path, computed):
    (one, first), (two, second) = written(tmp_path / "1.txt", b"a"), written(tmp_path / "2.txt", b"b")
    for _ in range(2):
        assert digests.digests([one, two], tmp_path / "cache") == [first, second]
    assert sorted(computed) == ["1.txt", "2.txt"]


@pytest.mark.parametrize("change", ["write", "undo", "replace", "rename"])
def test_a_changed_file_has_a_new_digest(tmp_path, computed, change):
    path, digest = written(tmp_path / "1.txt", b"a")
    other, new = written(tmp_path / "2.txt", b"b")
    before = path.stat()
    assert digests.digests([path], tmp_path / "cache") == [digest]
    if change == "replace":
        other.replace(path)
    elif change == "rename":
        path = path.rename(tmp_path / "3.txt")
        new = digest
    else:
        path.write_bytes(b"b")
        if change == "undo":
            path.write_bytes(b"a")
            new = digest
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.digests([path], tmp_path / "cache") == [new]
    assert len(computed) == 2


def test_the_digest_of_a_file_that_has_just_changed_is_not_kept(tmp_path, computed, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 1000)
    path, digest = written(tmp_path / "1.txt", b"a")
    for _ in range(2):
        assert digests.digests([path], tmp_path / "cache") == [digest]
    assert len(computed) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"state": 1}', b'{"state": [1, 2, 3, 4, 5], "sha256": "0"}'])
def test_a_damaged_record_is_not_used(tmp_path, computed, content):
    path, digest = written(tmp_path / "1.txt", b"a")
    digests.digests([path], tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(content)
    assert digests.digests([path], tmp_path / "cache") == [digest]
    assert len(computed) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, computed):
    path, digest = written(tmp_path / "1.txt", b"a")
    assert digests.digests([path], path / "cache") == [digest]


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read: No such file"):
        digests.digests([tmp_path / "gone.txt"], tmp_path / "cache")
