"""`distvae init`: the files to work with."""

import json

import pytest

from distvae.cli import main
from distvae.config.load import load_config
from distvae.system.errors import UserError
from distvae.system.project import FOLDERS, create
from tests.conftest import ROOT


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_the_files_of_the_checkout_are_written(tmp_path, capsys):
    folder = tmp_path / "my text"
    assert main(["init", str(folder)]) == 0
    for name in FOLDERS:
        assert files(folder / name) == files(ROOT / name)
    assert load_config(folder / "configs" / "demo" / "kla.yaml").run == "runs/demo/kla"
    assert (folder / "slurm" / "submit.sh").stat().st_mode & 0o111
    out = capsys.readouterr().out
    assert f"\n  cd '{folder}'\n  distvae train configs/own.yaml " in out
    assert main(["init", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == list(FOLDERS)


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "slurm").mkdir()
    assert main(["init", str(tmp_path)]) == 2
    line = f"distvae: {tmp_path / 'slurm'}: exists, and is not overwritten; name another folder\n"
    assert capsys.readouterr().err == line
    assert [path.name for path in tmp_path.iterdir()] == ["slurm"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        create(tmp_path / "file" / "folder")
