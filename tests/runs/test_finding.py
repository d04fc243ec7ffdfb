"""A model is found in a folder; tests/runs/test_sharing.py has the hub."""

import pytest

from distvae.runs import finding, hub
from distvae.runs.results import load_results
from distvae.system.errors import UserError


def test_a_run_and_its_export_are_found_with_the_scores(finished):
    for folder in (finished, finished / "best"):
        found = finding.find(str(folder))
        assert found.name == str(folder)
        assert found.export.folder == finished / "best"
        assert found.results == load_results(finished)


def test_a_folder_that_exists_wins_over_the_hub(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("asked the hub"))
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "vae").symlink_to(finished)
    assert finding.find("acme/vae").name == "acme/vae"
    (tmp_path / "acme" / "empty").mkdir()
    with pytest.raises(UserError, match="acme/empty: contains neither best/model.safetensors nor"):
        finding.find("acme/empty")


@pytest.mark.parametrize("name", ["nowhere", "./acme/vae", "/acme/vae", "a/b/c", "~/vae", "acme/../vae", "x" * 300])
def test_what_cannot_be_a_hub_id_is_a_folder_that_is_missing(name, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such folder; give a run folder, an exported folder or a hub id, ORG/NAME"):
        finding.find(name)


def test_a_command_that_needs_a_run_folder_says_why(finished):
    finding.check_folder(str(finished), "it is needed")
    with pytest.raises(UserError, match="^acme/vae: no such run folder; it is needed$"):
        finding.check_folder("acme/vae", "it is needed")
