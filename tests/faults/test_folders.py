"""A short campaign of damaged folders: the long one is ``python -m tests.faults.folders --count 200``."""

import json
import os

import pytest

from distvae.system.files import read_json
from tests.faults.folders import COMMANDS, HOSTILE, FolderCampaign, live, tree


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return FolderCampaign(tmp_path_factory.mktemp("folders").resolve())


# The last one lacks the results of a finished run, which a plan lists again.
CASES = [*((7, number) for number in range(2 * len(COMMANDS))), (1701, 108)]


@pytest.mark.cluster
@pytest.mark.parametrize(("seed", "number"), CASES)
def test_a_damaged_folder_is_told_of_in_a_line_and_left_as_it_is(campaign, seed, number):
    outcome = campaign.carry_out(seed, number)
    assert outcome.faults == [], (outcome.command.name, outcome.damage, outcome.answer.err)


def test_what_is_live_is_seen():
    assert live("sweep.md", "| a |\n| --- |\n| ![x](http://e) |\n")
    assert live("sweep.md", "[x](javascript:alert) <img src=x>")
    assert live("sweep.md", "see https://evil.example")
    assert live("sweep.html", HOSTILE[6])
    assert live("sweep.html", "<a href='trials/../../x/'>x</a>")
    assert not live("sweep.html", "<link href='data:,'><p>&lt;img src=x></p><a href='trials/0001.1/'>x</a>")


def test_a_tree_knows_what_changes_in_a_folder(tmp_path):
    (tmp_path / "a").write_text("1")
    os.mkfifo(tmp_path / "b")
    (tmp_path / "c").symlink_to("a")
    before = tree(tmp_path)
    assert tree(tmp_path) == before
    (tmp_path / "a").write_text(json.dumps(2))
    assert [name for name, value in tree(tmp_path).items() if before[name] != value] == ["a"]
    assert read_json(tmp_path / "c") == 2
