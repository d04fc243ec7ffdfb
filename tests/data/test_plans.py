import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.data.plans import GROUP, WINDOW, block_plan, evaluation_plan, training_plan

KEY = (1, 0, 1)
BATCH_SIZE = st.integers(1, 40)
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=300).map(np.array)
SEVERAL = settings(max_examples=60, deadline=None)


def padding(plan: list[np.ndarray], lengths: np.ndarray) -> float:
    """Share of the batches' tokens that is padding."""
    held = sum(len(batch) * lengths[batch].max() for batch in plan)
    return 1 - lengths.sum() / held


def same(plan: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(plan) == len(other) and all(np.array_equal(*pair) for pair in zip(plan, other, strict=True))


def as_sets(plan: list[np.ndarray]) -> set[frozenset[int]]:
    return {frozenset(batch.tolist()) for batch in plan}


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
    for outside in (-1, len(expected)):
        with pytest.raises(IndexError):
            plan[outside]


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


# -- A corpus that is not shuffled as a whole --------------------------------------------------------------------------


def planned_by_blocks(lengths: np.ndarray, batch_size: int, block: int, key: tuple[int, ...] = KEY):
    """The plan, and how often each range of lengths was asked for."""
    asked: list[tuple[int, int]] = []

    def lengths_of(start: int, end: int) -> np.ndarray:
        asked.append((start, end))
        return lengths[start:end]

    return block_plan(len(lengths), lengths_of, batch_size, key, block), asked


@SEVERAL
@given(
    lengths=LENGTHS, batch_size=BATCH_SIZE, block=st.integers(1, 50), key=st.tuples(*[st.integers(0, 2**64)] * 3),
    done=st.floats(0, 1),
)  # fmt: skip
def test_blocks_hold_every_sentence_once_and_one_partial_batch_at_most(lengths, batch_size, block, key, done):
    plan, asked = planned_by_blocks(lengths, batch_size, block, key)
    batches = list(plan)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    partial = [len(batch) for batch in batches if len(batch) != batch_size]
    assert partial == ([len(lengths) % batch_size] if len(lengths) % batch_size else [])
    assert len(asked) == len(set(asked))  # in order, each group is made once
    # What goes on in the middle of the epoch goes on by the same batches.
    first = int(done * len(batches))
    assert plan.sentences(first) == sum(map(len, batches[:first]))
    assert same(planned_by_blocks(lengths, batch_size, block, key)[0][first:], batches[first:])


def test_a_group_is_shuffled_as_a_small_corpus_is_and_groups_follow_each_other():
    lengths = np.random.default_rng(0).integers(3, 41, 5 * GROUP * 20 + 7)
    plan, _ = planned_by_blocks(lengths, 4, 20)
    groups, first = [], 0
    while first < len(plan):
        numbers = plan.group(first)
        assert (numbers.start, plan.group(numbers[-1])) == (first, numbers)
        groups.append(np.concatenate(plan[numbers.start : numbers.stop]))
        first = numbers.stop
    assert [len(group) for group in groups[:5]].count(GROUP * 20) >= 4
    assert sum(map(len, groups)) == len(lengths)
    for group in groups:
        blocks = np.unique(group // 20)
        assert len(blocks) == min(GROUP, len(group) // 20 + (len(group) % 20 > 0))
        held = np.concatenate([np.arange(b * 20, min(b * 20 + 20, len(lengths))) for b in blocks])
        assert sorted(group.tolist()) == held.tolist()
    starts = np.arange(0, len(lengths), 20)
    np.random.Generator(np.random.PCG64(list(KEY))).shuffle(starts)
    of_first = np.concatenate([np.arange(s, min(s + 20, len(lengths))) for s in starts[:GROUP]])
    small = training_plan(lengths[of_first], 4, (*KEY, 1))
    assert same(plan[: len(small)], [of_first[batch] for batch in small])


def test_blocks_are_in_another_order_every_epoch():
    lengths = np.full(4000, 5)
    first, second = (planned_by_blocks(lengths, 8, 40, (0, 0, epoch))[0] for epoch in (1, 2))
    assert set(np.concatenate(first[:80])) != set(np.concatenate(second[:80]))
    assert len(as_sets(list(first)) & as_sets(list(second))) < 5


def test_a_batch_larger_than_a_block_still_has_its_size():
    plan, _ = planned_by_blocks(np.full(1000, 5), 300, 64)
    assert sorted(map(len, plan)) == [100, 300, 300, 300]
