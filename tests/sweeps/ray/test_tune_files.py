"""The files in which Tune saves its state."""

import json
import pickle

import pytest

from distvae.sweeps.ray.tune_files import STATE_FILES, remove_torn


@pytest.fixture(params=["random", "optuna"])
def saved(request, tmp_path):
    """Tune's folder after two runs, how trials are chosen, and the files of both runs."""
    files = [
        [tmp_path / name.format(started) for name in STATE_FILES[request.param]] for started in ("2026-1", "2026-2")
    ]
    for first, *others in files:
        first.write_text(json.dumps({"trial_data": []}))
        for other in others:
            other.write_bytes(pickle.dumps({"drawn": list(range(9))}))
    (tmp_path / "tuner.pkl").write_bytes(pickle.dumps({"restored": True}))
    return tmp_path, request.param, files


def test_whole_states_stay(saved):
    folder, search, files = saved
    assert remove_torn(folder, search)
    assert all(file.exists() for state in files for file in state)


def test_a_torn_state_is_removed_with_a_warning(saved, capsys):
    folder, search, (first, second) = saved
    second[0].write_text('{"trial_data": [')
    assert remove_torn(folder, search)
    assert f"WARNING {second[0]}: is incomplete" in capsys.readouterr().err
    assert all(file.exists() for file in first)
    assert not any(file.exists() for file in second)


def test_tune_is_not_restored_without_its_settings_or_any_state(saved, tmp_path):
    folder, search, _ = saved
    (folder / "tuner.pkl").unlink()
    assert not remove_torn(folder, search)
    assert not remove_torn(tmp_path / "none", search)
