import pytest

from tests.faults.schemas import SUFFIXES, campaign


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.long)])
def test_files_whose_columns_change_are_read_exactly(count):
    outcomes = campaign(1, count)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    if count == 100:
        assert {suffix for outcome in outcomes for suffix in outcome.formats} == set(SUFFIXES)
        assert {outcome.refused for outcome in outcomes} == {True, False}
