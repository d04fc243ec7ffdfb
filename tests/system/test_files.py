"""Files and folders are written atomically, and what is read is checked."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from distvae.system import files
from distvae.system.errors import UserError
from distvae.system.files import (
    MANIFEST,
    Manifest,
    check_as,
    inside,
    output_file,
    parse_json,
    printable_json,
    read_bytes,
    read_manifest,
    read_text,
    sweep,
    temporary,
    verify,
    whole_folder,
    write_bytes,
    writing,
)

NEW = Manifest(start=1, step=2, world_size=3, files={})


def write_folder(target: Path, content: str, end=lambda: None, check=lambda: None) -> None:
    with whole_folder(target, NEW, check) as new:
        (new / "a.txt").write_text(content)
        end()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_replaces_another_and_lists_its_files(tmp_path):
    for content in ("old", "new!"):
        write_folder(tmp_path / "target", content)
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target" / "a.txt").read_text() == "new!"
    manifest = verify(tmp_path / "target", "a.txt")
    assert (manifest.start, manifest.step, manifest.world_size) == (1, 2, 3)
    assert {name: entry.size for name, entry in manifest.files.items()} == {"a.txt": 4}


@pytest.mark.parametrize("when", ["in the block", "in the check", "between the renames"])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path, monkeypatch, when):
    write_folder(tmp_path / "target", "old")

    def fail(*_):
        raise KeyboardInterrupt

    if when == "between the renames":
        rename, calls = os.rename, []

        def rename_once(source, destination):
            calls.append(source)
            if len(calls) == 2:
                fail()
            rename(source, destination)

        monkeypatch.setattr(os, "rename", rename_once)
    argument = {"in the block": {"end": fail}, "in the check": {"check": fail}}.get(when, {})
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "target", "new", **argument)
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target" / "a.txt").read_text() == "old"
    verify(tmp_path / "target")


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError):
        write_bytes(tmp_path / "a", b"new", lambda: 1 / 0)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("content", "message"),
    [("two", "its SHA-256 differs"), ("four", "it has 4 bytes of 3"), (None, "cannot be read: No such file")],
)
def test_a_changed_file_does_not_match_its_manifest(tmp_path, content, message):
    write_folder(tmp_path / "target", "one")
    path = tmp_path / "target" / "a.txt"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        verify(tmp_path / "target")
    assert str(caught.value).startswith(f"{path}: ")


def test_a_manifest_must_be_there_and_list_what_is_needed(tmp_path):
    with pytest.raises(UserError, match=f"{MANIFEST}: cannot be read: No such file"):
        read_manifest(tmp_path)
    write_folder(tmp_path / "target", "one")
    with pytest.raises(UserError, match=f"{MANIFEST}: does not list b.txt"):
        verify(tmp_path / "target", "a.txt", "b.txt")


def test_a_link_may_not_lead_out_of_its_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "real").write_text("real")
    (folder / "link").symlink_to("real")
    (folder / "out").symlink_to("../secret")
    (folder / "loop").symlink_to("loop")
    assert read_bytes(inside(folder, "link")) == b"real"
    for name in ("out", "loop", "../secret", "..", "a\0b"):
        with pytest.raises(UserError, match="leads out of"):
            inside(folder, name)
    with pytest.raises(UserError, match="leads out of"):
        read_bytes(folder / "out")


def test_only_regular_files_of_a_reasonable_size_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "is a pipe or a device"), (".", "is a folder"), ("none", "No such file")):
        with pytest.raises(UserError, match=message):
            read_bytes(tmp_path / name)
    monkeypatch.setattr(files, "LARGEST", 3)
    (tmp_path / "big").write_bytes(b"four")
    with pytest.raises(UserError, match="has 4 bytes, more than any file that distvae writes"):
        read_bytes(tmp_path / "big")
    (tmp_path / "latin").write_bytes(b"a\xe9")
    with pytest.raises(UserError, match="byte 1 is not UTF-8"):
        read_text(tmp_path / "latin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[NaN]", "NaN is not a finite number"),
        ("[1e999]", "1e999 is not a finite number"),
        (r'["\ud83d"]', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_cannot_be_written_again_is_refused(text, message):
    with pytest.raises(UserError, match=f"source: .*{message}"):
        parse_json(text, "source")


def test_json_is_read_as_it_was_written():
    content = {"a": [1, 2.5, True, None, "\U0001f600", "é\x1b"]}
    assert parse_json(json.dumps(content), "source") == content
    escaped = printable_json(json.dumps(content, ensure_ascii=False))
    assert "é\\u001b" in escaped
    assert parse_json(escaped, "source") == content


@dataclass(frozen=True)
class Point:
    x: int
    name: str = ""

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x is negative")


def test_values_are_checked_by_type():
    assert check_as(Point, {"x": 1}, "source", "a point") == Point(1)
    assert check_as(list[Point], [{"x": 1, "name": "a"}], "source", "points") == [Point(1, "a")]
    for content, message in [
        ({"x": "1"}, "x: Input should be a valid integer"),
        ({"x": True}, "x: Input should be a valid integer"),
        ({}, "x: Field required"),
        ({"x": -1}, "x is negative"),
    ]:
        with pytest.raises(UserError, match=f"^source: is not a point: {message}; it was damaged or changed"):
            check_as(Point, content, "source", "a point")


def test_a_failed_write_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory; earlier files are unchanged"):
        with writing(tmp_path):
            (tmp_path / "file" / "a").write_text("")


def test_a_file_to_write_is_checked_before_the_work(tmp_path):
    path, link = tmp_path / "new" / "a", tmp_path / "link"
    link.symlink_to(path)
    assert output_file(path) == output_file(link) == path
    assert names(tmp_path) == ["link"]
    (tmp_path / "file").write_text("kept")
    assert output_file(tmp_path / "file", [path]) == tmp_path / "file"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to pipe").symlink_to("pipe")
    (tmp_path / "to file").symlink_to("file")
    for name, message in {
        ".": "is a folder, and should be a file to write",
        "pipe": "is a pipe or a device, and should be a file to write",
        "to pipe": "is a pipe or a device, and should be a file to write",
        "file": "is a file that is read; name another one to write",
        "to file": "is a file that is read; name another one to write",
        "file/b": "cannot be written: Not a directory",
        "b" * 300: "cannot be written: File name too long",
    }.items():
        with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / name))}: {message}"):
            output_file(tmp_path / name, [tmp_path / "file"])
    assert (tmp_path / "file").read_text() == "kept"


def test_what_a_killed_process_left_is_removed(tmp_path):
    temporary(tmp_path / "file").touch()
    temporary(tmp_path / "folder").mkdir()
    temporary(tmp_path / "link").symlink_to(tmp_path)
    for name in ("kept", ".kept", ".file.0123"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert names(tmp_path) == [".file.0123", ".kept", "kept"]
    sweep(tmp_path / "none")
