import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.data.batches import collate, share
from distvae.data.plans import training_plan

PAD = 0
KEY = (1, 0, 1)
BATCH_SIZE = st.integers(1, 40)
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=300).map(np.array)
SEVERAL = settings(max_examples=60, deadline=None)


def sentences_of(lengths: np.ndarray) -> list[np.ndarray]:
    """Sentences of those lengths, no two alike and none with padding inside."""
    return [1 + 1000 * i + np.arange(length) for i, length in enumerate(lengths)]


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
