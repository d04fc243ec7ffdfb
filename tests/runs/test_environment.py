import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distvae.runs.environment import code_digest, device_name, environment, read_environment
from distvae.system.errors import UserError


def test_environment_names_versions_and_commit():
    found = json.loads(json.dumps(environment("1 process")))
    assert found["packages"]["torch"] == torch.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["command"] == sys.argv
    root, head = Path(__file__).resolve().parents[2], ""
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert found["commit"] in ((head.strip(), f"{head.strip()}-dirty") if head else (None,))


def test_a_copy_of_the_tree_names_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("distvae.runs.environment.__file__", str(tmp_path / "distvae" / "runs" / "environment.py"))
    assert environment("1 process")["commit"] is None
    (tmp_path / "COMMIT").write_text("0123abc-dirty\n")
    assert environment("1 process")["commit"] == "0123abc-dirty"


def test_an_environment_is_read_back(tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps(environment("2 processes")))
    found = read_environment(tmp_path)
    assert (found.processes, found.device) == ("2 processes", device_name())
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(UserError, match="is not the environment of a run"):
        read_environment(tmp_path)


def test_the_digest_depends_on_names_and_contents_of_the_source_alone(tmp_path, monkeypatch):
    package = tmp_path / "distvae"
    (package / "runs").mkdir(parents=True)
    monkeypatch.setattr("distvae.runs.environment.__file__", str(package / "runs" / "environment.py"))
    source = package / "runs" / "environment.py"
    source.write_text("1")
    before = code_digest()
    (package / "notes.txt").write_text("2")
    assert code_digest() == before
    source.write_text("2")
    changed = code_digest()
    source.rename(package / "runs" / "other.py")
    assert len({before, changed, code_digest()}) == 3
