"""Schedulers, without a cluster."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from distvae.config.load import dump_config
from distvae.runs.records import read_metrics
from distvae.sweeps import lineage, sweep
from tests.sweep_folders import pbt_sweep, scores, sweep_of, write_run

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from ray.train import Checkpoint
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from distvae.sweeps.ray.search import scheduler
from distvae.sweeps.ray.trial_metrics import current_metrics, metrics_of


class Told:
    """A trial as a scheduler sees it, with its folder in Tune's."""

    status = "RUNNING"

    def __init__(self, folder: Path, number: int, values: dict):
        self.trial_id, self.config, self.experiment_tag = f"ab12_{number:05d}", {"values": values}, str(number)
        self.path = str(folder / "tune" / f"trial_{number:04d}")
        self.storage = SimpleNamespace(experiment_fs_path=str(folder / "tune"))
        self.checkpoint = None
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        )

    def is_finished(self) -> bool:
        return True  # so that population-based training does nothing with it


ALONE = SimpleNamespace(search_alg=None, get_trials=list)  # stands in for Tune's controller


def restored(asked: sweep.Sweep):
    """The scheduler of a sweep as Tune restores it: pickled by the first attempt."""
    found = pickle.loads(pickle.dumps(scheduler(asked)))
    found.set_search_properties("objective", asked.config.objective.mode)
    return found


def trained(asked: sweep.Sweep, number: int, values: dict, epochs: int) -> list[dict]:
    """Write the records of a trial. Return the metrics that it reports after each epoch."""
    run = asked.folder / "trials" / f"{number:04d}"
    config = asked.config_of(values, run)
    write_run(run, scores(18.0 + number, values["kl.target_rate"], 3.0, 3), curves=False, epochs=epochs, pretrain=2)
    (run / "config.yaml").write_text(dump_config(config))
    rows = read_metrics(run)
    found = []
    for epoch in range(1, epochs + 1):
        (run / "metrics.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows[: 2 + epoch]))
        found.append(current_metrics(asked, config, run))
    return found


def test_asha_knows_after_a_restart_what_it_knew_before(tmp_path):
    asked = sweep_of(tmp_path / "sweep", scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2})
    before, points = restored(asked), asked.points()
    every = [Told(asked.folder, number, values) for number, values in enumerate(points)]
    for one in every:
        before.on_trial_add(ALONE, one)
    told = [trained(asked, number, points[number], epochs=4 + number) for number in range(5)]  # the sixth is new
    for epoch in range(9):
        for one, results in zip(every, told, strict=False):
            if epoch < len(results):
                before.on_trial_result(ALONE, one, results[epoch])
    asked.folder.rename(tmp_path / "moved")
    after, new = restored(asked), restored(asked)
    for _ in range(2):  # as Tune does with a trial that it restarts
        for number, values in enumerate(points):
            after.on_trial_add(ALONE, Told(tmp_path / "moved", number, values))

    def decisions(asha) -> list[str]:
        """Its decisions on new trials, some better and some worse than those before."""
        found = []
        for number, objective in enumerate((30.0, 17.0, 19.5, 21.5, 18.5), 6):
            one = Told(tmp_path / "moved", number, {"kl.target_rate": 3.0})
            asha.on_trial_add(ALONE, one)
            for epochs in (1, 2, 4, 8):
                found.append(asha.on_trial_result(ALONE, one, {"judged_epochs": epochs, "objective": objective}))
        return found

    expected = decisions(before)
    assert decisions(after) == expected
    assert decisions(new) != expected
    assert {TrialScheduler.CONTINUE, TrialScheduler.STOP} == set(expected)


def test_population_based_training_knows_after_a_restart_how_its_trials_stood(tmp_path):
    asked = pbt_sweep(tmp_path / "sweep")
    before, after = restored(asked), restored(asked)
    for number, (run, rate) in enumerate([("0000", 4.0), ("0001.1", 4.8)]):
        values, first = {"kl.target_rate": rate}, asked.folder / "trials" / f"{number:04d}"
        (first / "config.yaml").write_text(dump_config(asked.config_of({"kl.target_rate": 4.0}, first)))
        one = Told(asked.folder, number, values)
        PopulationBasedTraining.on_trial_add(before, ALONE, one)
        rows = lineage.history(asked.folder, asked.folder / "trials" / run)
        for n in range(1, 9):
            before.on_trial_result(ALONE, one, metrics_of(asked, asked.config_of(values, first), rows[:n]))
        after.on_trial_add(ALONE, one)
        there, here = vars(before._trial_state[one]), vars(after._trial_state[one])
        assert here == there
        assert here["last_perturbation_time"] == 4  # 5 epochs after annealing, compared every second epoch


def test_a_checkpoint_stays_until_no_trial_may_continue_from_it(tmp_path, clock):
    asked = pbt_sweep(tmp_path / "sweep")
    asked = replace(asked, config=replace(asked.config, run=str(tmp_path / "new")))
    population = restored(asked)
    donor, loser = trials = [Told(asked.folder, number, {"kl.target_rate": 4.0}) for number in (0, 1)]
    controller = SimpleNamespace(search_alg=None, get_trials=lambda: trials)
    for trial in trials:
        population.on_trial_add(controller, trial)

    def reports(epoch: int) -> set[int]:
        """Have the donor report an epoch, half a minute after the one before. Return the checkpoints that it has."""
        clock.now += 30.0
        path = Path(donor.path) / f"checkpoint_{epoch:06d}"
        path.mkdir(parents=True)
        donor.checkpoint = Checkpoint(str(path))
        population.on_trial_result(controller, donor, {"judged_epochs": 0, "objective": 20.0})
        return {int(one.name[-6:]) for one in path.parent.iterdir()}

    reports(1)
    reports(2)
    # The loser waits for its place with the second. The newest three are those since the last comparison.
    loser.checkpoint = Checkpoint(f"/before/the/move/tune/trial_0000/checkpoint_{2:06d}")
    assert [reports(epoch) for epoch in (3, 4, 5, 6)] == [{1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}, {2, 3, 4, 5, 6}]
    assert reports(7) == {2, 3, 4, 5, 6, 7}
    assert reports(8) == {2, 4, 5, 6, 7, 8}
    loser.checkpoint = None
    assert [reports(epoch) for epoch in (9, 10, 11)] == [{2, 5, 6, 7, 8, 9}, {2, 6, 7, 8, 9, 10}, {7, 8, 9, 10, 11}]
