"""The metrics of trials that Tune gets."""

import pytest

from distvae.config.load import dump_config
from tests.sweep_folders import scores, sweep_of, write_run

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray.trial_metrics import current_metrics, failed_metrics, metrics_of, past_metrics


def test_both_metrics_of_a_trial_whose_kl_is_wrong_are_told_behind_all_others(tmp_path):
    both = {"objective": {"second": "mutual_information"}, "search": "optuna"}
    asked = sweep_of(tmp_path / "sweep", space={"kl.multiplier": {"uniform": [0.1, 0.5]}}, **both)
    told = []
    for number, (kl, mi) in enumerate([(4.0, 3.0), (9.0, 8.0)]):
        run = asked.folder / "trials" / f"{number:04d}"
        write_run(run, scores(18.0, kl, mi, 3), curves=False)
        told.append(current_metrics(asked, asked.config_of({}, run), run))
    assert (told[0]["objective"], told[0]["second"]) == (18.0, 3.0)
    assert told[1]["objective"] > 1000
    assert told[1]["second"] < -1000
    assert told[1]["mutual_information"] == 8.0


def test_what_a_damaged_or_another_trial_recorded_is_not_told_again(tmp_path):
    asked = sweep_of(tmp_path / "sweep", scheduler={"name": "asha", "grace_epochs": 1})
    values = asked.points()[0]
    run = asked.folder / "trials" / "0000"
    write_run(run, scores(18.0, 2.0, 1.5, 3), curves=False)
    (run / "config.yaml").write_text(dump_config(asked.config_of(values, run)))
    assert len(past_metrics(asked, 0, values)) == 8
    assert past_metrics(asked, 0, values | {"kl.multiplier": 0.25}) == []
    assert past_metrics(asked, 1, values) == []
    (run / "metrics.jsonl").write_text("no JSON\n" * 2)
    assert past_metrics(asked, 0, values) == []


def test_a_failed_trial_is_behind_all_others(tmp_path):
    both = {"objective": {"second": "mutual_information"}, "search": "optuna"}
    asked = sweep_of(tmp_path / "sweep", space={"kl.multiplier": {"uniform": [0.1, 0.5]}}, **both)
    metrics = failed_metrics(asked, "not finite")
    assert metrics["objective"] > 1e6
    assert metrics["second"] < -1e6
    assert (metrics["failed"], metrics["judged_epochs"]) == ("not finite", 0)


def test_records_without_validation_scores_are_refused(tmp_path):
    asked = sweep_of(tmp_path / "sweep")
    with pytest.raises(ValueError, match="no validation scores"):
        metrics_of(asked, asked.config_of(asked.points()[0], tmp_path / "run"), [])
