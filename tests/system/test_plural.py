import pytest

from distvae.system.plural import counted


@pytest.mark.parametrize(("count", "text"), [(0, "0 epochs"), (1, "1 epoch"), (2, "2 epochs"), (1000, "1,000 epochs")])
def test_one_thing_is_no_plural(count, text):
    assert counted(count, "epoch") == text


def test_a_noun_may_have_a_plural_of_its_own():
    assert (counted(1, "process", "processes"), counted(3, "process", "processes")) == ("1 process", "3 processes")
