"""The settings of a sweep file."""

import pytest
from pydantic import ValidationError

from distvae.sweeps.specification import ObjectiveConfig, TrialConfig


@pytest.mark.parametrize(
    ("settings", "goals"),
    [
        ({}, [("nll", "min")]),
        ({"metric": "mutual_information"}, [("mutual_information", "max")]),
        ({"metric": "kl", "direction": "min"}, [("kl", "min")]),
        ({"second": "active_units"}, [("nll", "min"), ("active_units", "max")]),
        ({"metric": "kl", "direction": "min", "second": "re"}, [("kl", "min"), ("re", "min")]),
    ],
)
def test_each_metric_has_its_direction_unless_another_is_given(settings, goals):
    objective = ObjectiveConfig(**settings)
    assert objective.goals == goals
    assert (objective.mode, objective.second_mode) == (goals[0][1], goals[-1][1])


@pytest.mark.parametrize(("cpus", "threads"), [(0.25, 1), (1.0, 1), (4.0, 4)])
def test_a_process_has_a_thread_for_each_of_its_cpus(cpus, threads):
    assert TrialConfig(cpus=cpus).threads == threads


@pytest.mark.parametrize("cpus", [1.5, 0.0, 2000.0])
def test_a_number_of_cpus_that_no_process_can_have_is_refused(cpus):
    with pytest.raises(ValidationError, match="cpus"):
        TrialConfig(cpus=cpus)
