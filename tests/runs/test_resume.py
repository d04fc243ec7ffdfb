"""Opening a run's folder; ``tests/fixtures/format1/run`` is a finished run."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distvae.config.load import load_config
from distvae.config.schema import Config
from distvae.runs import attempts, resume
from distvae.runs.attempts import Lease, read_attempts
from distvae.runs.checkpoints import list_checkpoints
from distvae.runs.folder import holds_run
from distvae.runs.resume import finished, open_run
from distvae.runs.status import read_status
from distvae.system.errors import UserError
from distvae.system.files import sha256

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format1" / "run"


@pytest.fixture
def run(tmp_path) -> Path:
    return shutil.copytree(FIXTURE, tmp_path / "run", symlinks=True)


def config(**changes) -> Config:
    return replace(load_config(FIXTURE / "config.yaml"), **changes)


def longer() -> Config:
    asked = config()
    return replace(asked, train=replace(asked.train, max_epochs=3))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_is_opened_for_a_new_run(tmp_path):
    folder = tmp_path / "a" / "new"
    opening = open_run(config(run=str(folder)), folder, "1 process")
    assert (opening.attempt.number, opening.checkpoint, opening.results) == (1, None, None)
    assert load_config(folder / "config.yaml").run == str(folder)
    assert read_status(folder).state == "running"
    assert not holds_run(folder)  # a record of attempts alone


def test_a_finished_run_is_not_trained_again(run, capsys):
    before = contents(run)
    opening = open_run(config(), run, "1 process")
    assert opening.attempt is None
    assert opening.results.scores.sentences == 8
    assert f"{run}: finished" in capsys.readouterr().out
    assert contents(run) == before


def test_a_longer_run_resumes_from_the_newest_checkpoint(run):
    opening = open_run(longer(), run, "1 process")
    assert opening.attempt.number == 2
    assert opening.checkpoint.name == os.readlink(run / "checkpoints" / "latest")
    assert not (run / "results.json").exists()
    assert load_config(run / "config.yaml").train.max_epochs == 3


def test_another_attempt_that_lives_is_not_disturbed(run):
    lease = Lease(run, open_run(longer(), run, "1 process").attempt)
    with pytest.raises(UserError, match="attempt 2 is training it"):
        open_run(longer(), run, "1 process")
    assert open_run(longer(), run, "1 process", overtake=True).attempt.number == 3
    lease.release()
    assert len(read_attempts(run)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"cannot resume under another config: seed \(3 there, 4 here\)"),
        ({"resume": "never"}, "contains a run already"),
        ({"resume": "nowhere"}, "is neither auto nor never, nor the folder of a checkpoint"),
    ],
)
def test_what_does_not_continue_the_run_is_refused_and_changes_nothing(run, changes, message):
    before = contents(run)
    with pytest.raises(UserError, match=message):
        open_run(replace(longer(), **changes), run, "1 process")
    assert contents(run) == before


@pytest.mark.parametrize("stage", ["train", "pretrain"])
def test_a_stage_with_a_checkpoint_is_not_skipped(run, stage):
    """The run would continue without the weights of the checkpoint."""
    asked = config()
    if stage == "pretrain":
        state = run / "checkpoints" / os.readlink(run / "checkpoints" / "latest") / "state.json"
        inside = json.loads(state.read_text()) | {"stage": "pretrain"}
        state.write_text(json.dumps(inside))
        manifest = state.with_name("manifest.json")
        whole = json.loads(manifest.read_text())
        whole["files"]["state.json"] = {"size": state.stat().st_size, "sha256": sha256(state)}
        manifest.write_text(json.dumps(whole))
    before = contents(run)
    short = replace(asked, **{stage: replace(getattr(asked, stage), max_epochs=0)})
    with pytest.raises(UserError, match=f"was saved in stage {stage}, which {stage}.max_epochs=0 skips"):
        open_run(short, run, "1 process")
    assert contents(run) == before


def test_a_failed_opening_does_not_hold_the_run(run, monkeypatch):
    """In a notebook the process lives on."""
    with monkeypatch.context() as patched:
        patched.setattr(resume, "write_json", full)
        with pytest.raises(UserError, match="No space left on device"):
            open_run(longer(), run, "1 process")
    assert open_run(longer(), run, "1 process").attempt.number == 3


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_an_attempt_saves_while_it_ends_is_resumed(run, monkeypatch):
    claim, (saved,) = attempts.claim, list_checkpoints(run)
    newer = saved.with_name(saved.name.replace("start-0001", "start-0002"))

    def slow(*arguments):
        saved.rename(newer)
        return claim(*arguments)

    monkeypatch.setattr(attempts, "claim", slow)
    assert open_run(longer(), run, "1 process").checkpoint == newer


def test_other_sentences_are_refused(run):
    asked = longer()
    path = run.parent / "other"
    path.mkdir()
    for split in ("train", "valid", "test"):
        (path / f"{split}.txt").write_text("a b c\n" * 3)
    with pytest.raises(UserError, match="was trained on other sentences"):
        open_run(replace(asked, data=replace(asked.data, path=str(path))), run, "1 process")


def test_a_run_that_asks_for_more_has_not_finished(run, tmp_path):
    assert finished(longer(), run) is None
    assert finished(config(), run) is not None
    assert finished(config(), tmp_path / "none") is None
