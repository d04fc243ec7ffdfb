import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.data.splits import choose, cut, cut_groups, make_disjoint
from distvae.system.errors import UserError

NAMES = ["test", "train", "unsupervised", "validation"]


def test_splits_are_chosen_by_name():
    assert choose(NAMES, None, "x") == {"train": "train", "valid": "validation", "test": "test"}
    assert choose(["train", "dev", "validation"], None, "x") == {"train": "train", "valid": "validation"}
    assert choose(["train"], None, "x") == {"train": "train"}
    assert choose(NAMES, ("unsupervised",), "x") == {"train": "unsupervised"}
    assert choose(NAMES, ("train", None, "validation"), "x") == {"train": "train", "test": "validation"}


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (["test", "validation"], None, "x: has no split train, only test, validation; name those to use: data.split="),
        (NAMES, (None, "validation"), "x: has no split train"),
        (NAMES, ("train", "dev"), "data.split: x has no split dev, only test, train, unsupervised, validation"),
        (NAMES, ("train", "train"), "data.split: names one split of x twice: train, train"),
    ],
)
def test_splits_that_are_not_there(names, wanted, message):
    with pytest.raises(UserError) as caught:
        choose(names, wanted, "x")
    assert message in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
    seed=st.integers(0, 99),
)
def test_strata_have_equal_shares(counts, shares, seed):
    strata = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    total = len(strata)
    sizes = {"valid": int(shares[0] * total), "test": int(shares[1] * total)}
    rows = np.arange(100, 100 + total)
    parts = cut(rows, sizes, seed, strata)
    assert sorted(np.concatenate(list(parts.values()))) == rows.tolist()
    assert {name: len(part) for name, part in parts.items()} == sizes | {"train": total - sum(sizes.values())}
    for name in ("valid", "test"):
        found = np.bincount(strata[parts[name] - 100], minlength=len(counts))
        assert (abs(found - sizes[name] * np.array(counts) / total) < 2).all()
    again = cut(rows, sizes, seed, strata)
    assert all((parts[name] == again[name]).all() for name in parts)


def test_strata_are_exact_where_they_can_be():
    parts = cut(np.arange(100), {"valid": 10, "test": 20}, 0, np.repeat([0, 1], [80, 20]))
    assert [(part < 80).sum() for part in parts.values()] == [8, 16, 56]


def test_no_group_is_in_two_splits():
    noise = np.random.default_rng(0)
    groups = noise.integers(-1, 12, 200)
    parts = cut_groups(np.arange(200), {"valid": 20, "test": 30}, 0, groups)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(200))
    named = [set(groups[part].tolist()) - {-1} for part in parts.values()]
    assert not (named[0] & named[1] | named[0] & named[2] | named[1] & named[2])
    assert 0 < len(parts["valid"]) <= 20
    assert 0 < len(parts["test"]) <= 30
    other = cut_groups(np.arange(200), {"valid": 20, "test": 30}, 1, groups)
    assert other["test"].tolist() != parts["test"].tolist()


def test_sentences_in_two_splits_are_dropped():
    sentences = {"train": ["a", "b", "c", "a"], "valid": ["b", "d"], "test": ["d", "a"]}
    rows = {split: np.arange(len(own)) for split, own in sentences.items()}
    assert make_disjoint(rows, sentences.__getitem__) == {"train": 3, "valid": 1}
    assert {split: own.tolist() for split, own in rows.items()} == {"train": [2], "valid": [0], "test": [0, 1]}
