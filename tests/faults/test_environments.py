"""A few of the environments of ``python -m tests.faults.environments``, and what its cases are."""

import itertools

import pytest

from tests.faults.environments import STREAMS, Surroundings, cases


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    return Surroundings(tmp_path_factory.mktemp("environments"))


# The last one can write neither its output nor its exit code.
CASES = [*itertools.islice(cases(1), 6), next(itertools.islice(cases(1703), 1, None))]


@pytest.mark.cluster
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_program_ends_well_or_in_one_line(surroundings, case):
    code, faults = surroundings.carry_out(case)
    assert faults == [], code


def test_a_seed_draws_the_same_cases_each_time():
    drawn = list(itertools.islice(cases(0), 200))
    assert drawn == list(itertools.islice(cases(0), 200))
    assert drawn != list(itertools.islice(cases(1), 200))
    assert {case.streams for case in drawn} == set(STREAMS)
    assert {case.program for case in drawn} == {"train", "sample", "compare"}
