import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.data.batches import WINDOW, collate, evaluation_plan, share, training_plan

PAD = 0
KEY = (1, 0, 1)
BATCH_SIZE = st.integers(1, 40)
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=300).map(np.array)
SEVERAL = settings(max_examples=60, deadline=None)


def sentences_of(lengths: np.ndarray) -> list[np.ndarray]:
    """Sentences of those lengths, no two alike and none with padding inside."""
    return [1 + 1000 * i + np.arange(length) for i, length in enumerate(lengths)]


def padding(plan: list[np.ndarray], lengths: np.ndarray) -> float:
    """Share of the batches' tokens that is padding."""
    held = sum(len(batch) * lengths[batch].max() for batch in plan)
    return 1 - lengths.sum() / held


def same(plan: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(plan) == len(other) and all(np.array_equal(*pair) for pair in zip(plan, other, strict=True))


def as_sets(plan: list[np.ndarray]) -> set[frozenset[int]]:
    return {frozenset(batch.tolist()) for batch in plan}


# -- An epoch's plan ---------------------------------------------------------------------------------------------------


@SEVERAL
@given(lengths=LENGTHS, batch_size=BATCH_SIZE, key=st.tuples(*[st.integers(0, 2**64)] * 3))
def test_every_sentence_is_in_one_batch_of_an_epoch_and_one_batch_at_most_is_partial(lengths, batch_size, key):
    plan = training_plan(lengths, batch_size, key)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    partial = [len(batch) for batch in plan if len(batch) != batch_size]
    assert partial == ([len(lengths) % batch_size] if len(lengths) % batch_size else [])


def test_windows_are_cut_without_a_partial_batch_between_them():
    lengths = np.full(WINDOW * 2 * 3 + 1, 5)
    assert sorted(len(batch) for batch in training_plan(lengths, 2, KEY)) == [1] + [2] * WINDOW * 3


@SEVERAL
@given(lengths=LENGTHS, batch_size=BATCH_SIZE, ranks=st.integers(1, 9), micros=st.integers(1, 3))
def test_the_ranks_slices_of_an_epoch_hold_each_sentence_once(lengths, batch_size, ranks, micros):
    """Whatever the number of ranks and micro-batches: what they hold of a step, in order, is that global batch."""
    sentences = sentences_of(lengths)
    seen = []
    for batch in training_plan(lengths, batch_size, KEY):
        parts = [
            collate(sentences, batch, share(len(batch), rank * micros + micro, ranks * micros), PAD)
            for rank in range(ranks)
            for micro in range(micros)
        ]
        held = [int(row[0]) // 1000 for part in parts for row in part.tokens[: part.count]]
        assert held == batch.tolist()
        seen += held
    assert sorted(seen) == list(range(len(lengths)))


def test_the_same_key_gives_the_same_plan_and_another_key_another():
    lengths = np.arange(500) % 17 + 2
    plan = training_plan(lengths, 8, (7, 1, 3))
    assert same(plan, training_plan(lengths.copy(), 8, [7, 1, 3]))
    for key in [(8, 1, 3), (7, 0, 3), (7, 1, 4), (1, 7, 3), (3, 1, 7), (71, 3, 0)]:
        assert not same(plan, training_plan(lengths, 8, key))


def planned_by_lists(lengths: np.ndarray, batch_size: int, key: tuple[int, ...]) -> list[np.ndarray]:
    """A plan step by step, each step with arrays of its own."""

    def cut(order: np.ndarray, size: int) -> list[np.ndarray]:
        return [order[start : start + size] for start in range(0, len(order), size)]

    rng = np.random.Generator(np.random.PCG64(list(key)))
    windows = cut(rng.permutation(len(lengths)), WINDOW * batch_size)
    batches = cut(np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows]), batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


@pytest.mark.parametrize("batch_size", [1, 3, 32, 512])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 2048, 2049, 5000, 100_003])
def test_a_plan_is_in_place_what_it_is_step_by_step(count, batch_size):
    """Runs that were interrupted before plans were made in place go on by the same batches."""
    lengths = np.random.default_rng(count).integers(3, 41, count).astype(np.int32)
    plan, expected = training_plan(lengths, batch_size, KEY), planned_by_lists(lengths, batch_size, KEY)
    assert same(plan, expected)
    half = len(expected) // 2
    assert same(plan[:half], expected[:half])
    assert same(plan[half:], expected[half:])
    assert np.array_equal(plan[-1], expected[-1])
    with pytest.raises(IndexError):
        plan[len(expected)]


def test_planning_leaves_the_global_generator_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    training_plan(np.full(20, 5), 4, KEY)
    assert np.array_equal(before, np.random.get_state()[1])


def test_batches_are_of_other_sentences_every_epoch():
    lengths = np.random.default_rng(0).permutation(2048) + 2  # no two alike: sorting leaves no choice
    epochs = [as_sets(training_plan(lengths, 8, (0, 0, epoch))) for epoch in range(3)]
    assert len(epochs[0] & epochs[1]) + len(epochs[1] & epochs[2]) + len(epochs[0] & epochs[2]) < 5


def test_sorting_in_windows_leaves_little_padding():
    lengths = np.random.default_rng(0).integers(5, 41, 10000)
    order = np.random.default_rng(1).permutation(len(lengths))
    unsorted = [order[start : start + 32] for start in range(0, len(order), 32)]
    plan = training_plan(lengths, 32, KEY)
    assert padding(unsorted, lengths) > 0.35
    assert padding(plan, lengths) < 0.03
    assert max(np.ptp(lengths[batch]) for batch in plan) <= 4  # no batch is part of two windows


def test_an_epoch_does_not_go_from_short_to_long():
    lengths = np.random.default_rng(0).integers(5, 41, 10000)
    means = np.array([lengths[batch].mean() for batch in training_plan(lengths, 32, KEY)])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15


def test_the_partial_batch_is_not_always_the_last():
    lengths = np.arange(5 * 8 + 3) % 7 + 2
    places = {[len(batch) for batch in training_plan(lengths, 8, (0, 0, epoch))].index(3) for epoch in range(30)}
    assert len(places) > 1


@SEVERAL
@given(lengths=LENGTHS, batch_size=BATCH_SIZE)
def test_evaluation_holds_each_sentence_once_in_batches_of_similar_length(lengths, batch_size):
    plan = evaluation_plan(lengths, batch_size)
    order = np.concatenate(plan)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) >= 0).all()
    assert [len(batch) for batch in plan[:-1]] == [batch_size] * (len(plan) - 1)
    assert len(plan) == -(-len(lengths) // batch_size)
    assert same(plan, evaluation_plan(lengths, batch_size))


# -- A rank's slice ----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(size=st.integers(0, 300), parts=st.integers(1, 64))
def test_shares_partition_a_batch_evenly(size, parts):
    slices = [share(size, part, parts) for part in range(parts)]
    assert [row for rows in slices for row in range(size)[rows]] == list(range(size))
    sizes = [rows.stop - rows.start for rows in slices]
    assert max(sizes) - min(sizes) <= 1
    assert all(rows.step is None for rows in slices)


@SEVERAL
@given(size=st.integers(0, 300), ranks=st.integers(1, 16), micros=st.integers(1, 4))
def test_the_micro_batches_of_a_rank_stand_side_by_side(size, ranks, micros):
    for rank in range(ranks):
        slices = [share(size, rank * micros + micro, ranks * micros) for micro in range(micros)]
        whole = share(size, rank, ranks)
        assert (slices[0].start, slices[-1].stop) == (whole.start, whole.stop)
        assert all(a.stop == b.start for a, b in zip(slices, slices[1:], strict=False))


def test_collate_by_hand():
    sentences = [np.array([1, 5, 2]), np.array([1, 2]), np.array([1, 6, 7, 8, 2]), np.array([1, 9, 2])]
    batch = collate(sentences, np.array([2, 1, 3, 0]), slice(1, 4), pad=99)
    assert batch.tokens.tolist() == [[1, 2, 99], [1, 9, 2], [1, 5, 2]]
    assert batch.lengths.tolist() == [2, 3, 3]
    assert (batch.rows, batch.count) == (slice(1, 4), 3)
    assert batch.tokens.dtype == batch.lengths.dtype == torch.int64


@SEVERAL
@given(lengths=LENGTHS, seed=st.integers(0, 1000), start=st.integers(0, 20), size=st.integers(1, 20))
def test_collate_pads_on_the_right_up_to_its_own_longest(lengths, seed, start, size):
    sentences = sentences_of(lengths)
    numbers = np.random.default_rng(seed).integers(len(lengths), size=40)
    batch = collate(sentences, numbers, slice(start, start + size), PAD)
    held = numbers[start : start + size]
    assert batch.lengths.tolist() == lengths[held].tolist()
    assert batch.tokens.shape == (size, lengths[held].max())
    for row, number, length in zip(batch.tokens, held, batch.lengths, strict=True):
        assert row[:length].tolist() == sentences[number].tolist()
        assert (row[length:] == PAD).all()


@pytest.mark.parametrize("rows", [slice(0, 0), slice(2, 2), slice(3, 3)])
def test_an_empty_slice_holds_a_dummy_that_does_not_count(rows):
    sentences = sentences_of(np.array([3, 4, 2]))
    batch = collate(sentences, np.array([1, 2, 0]), rows, PAD)
    assert batch.count == 0
    assert batch.rows == slice(0, 1)
    assert batch.tokens.tolist() == [sentences[1].tolist()]
    assert batch.lengths.tolist() == [4]


def test_more_ranks_than_sentences_leave_some_with_a_dummy():
    sentences = sentences_of(np.array([3, 4]))
    counts = [collate(sentences, np.array([1, 0]), share(2, rank, 5), PAD).count for rank in range(5)]
    assert sorted(counts) == [0, 0, 0, 1, 1]
