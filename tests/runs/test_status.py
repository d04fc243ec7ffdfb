import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from distvae.evaluation.liveness import Latent
from distvae.runs.status import end_status, is_running, read_status, write_status
from distvae.system.errors import UserError


def test_status_says_how_the_run_stands(tmp_path):
    run = tmp_path / "runs" / "new"
    for state, reason in (("running", None), ("failed", "the gradient of step 7 is not finite, at γ 0.1")):
        write_status(run, state, reason)
        content = json.loads((run / "status.json").read_text(encoding="utf-8"))
        assert (content["state"], content["reason"]) == (state, reason)
        assert content.keys() == {"state", "reason", "time", "start", "latent"}
        age = datetime.now(timezone.utc) - datetime.fromisoformat(content["time"])
        assert timedelta(seconds=-1) < age < timedelta(minutes=5)
        assert [path.name for path in run.iterdir()] == ["status.json"]


def test_status_is_whole_at_every_moment(tmp_path, monkeypatch):
    write_status(tmp_path, "running")
    write_bytes, seen = Path.write_bytes, []

    def look(path, content):
        for end in (1, len(content) // 2, len(content)):
            write_bytes(path, content[:end])
            seen.append(json.loads((tmp_path / "status.json").read_bytes())["state"])

    monkeypatch.setattr(Path, "write_bytes", look)
    write_status(tmp_path, "finished")
    assert seen == ["running"] * 3
    assert json.loads((tmp_path / "status.json").read_bytes())["state"] == "finished"


def test_a_reason_in_a_status_is_one_line_of_limited_length(tmp_path):
    """Libraries raise errors of a hundred kilobytes."""
    write_status(tmp_path, "failed", "first line\nsecond \x1b[31m" + "x" * 107_000)
    reason = json.loads((tmp_path / "status.json").read_text())["reason"]
    assert len(reason) < 2200
    assert reason.isprintable()
    assert reason.startswith("first line\\nsecond \\x1b[31m")


def test_the_status_of_a_finished_run_is_written_once(tmp_path):
    """A process may be killed between the results and the status."""
    write_status(tmp_path, "running", start=2)
    written = end_status(tmp_path, 2, Latent("alive"))
    assert (written.state, written.start, written.latent) == ("finished", 2, Latent("alive"))
    assert end_status(tmp_path, 3, None) == written == read_status(tmp_path)


def test_a_run_is_running_while_its_status_says_so(tmp_path):
    assert not is_running(tmp_path)
    write_status(tmp_path, "running", start=1)
    assert is_running(tmp_path)
    write_status(tmp_path, "interrupted", start=1)
    assert not is_running(tmp_path)
    (tmp_path / "status.json").write_text("{")
    assert not is_running(tmp_path)


def test_a_status_that_no_run_wrote_is_refused(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "mine", "reason": null, "time": "", "start": null}')
    with pytest.raises(UserError, match="is not the status of a run: state"):
        read_status(tmp_path)
