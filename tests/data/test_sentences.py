"""Token ids of a split, mapped from files or in memory."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distvae.data.sentences import Sentences


@hypothesis_settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), min_size=1, max_size=40), size=st.integers(1, 50))
def test_sentences_are_the_rows_of_memory_mapped_arrow(tmp_path_factory, rows, size):
    folder = tmp_path_factory.mktemp("arrow")
    features = datasets.Features({"ids": datasets.List(datasets.Value("int32"))})
    dataset = datasets.Dataset.from_dict({"ids": rows}, features=features)
    dataset.map(lambda batch: batch, batched=True, batch_size=size, writer_batch_size=size).save_to_disk(folder)
    before = pa.total_allocated_bytes()
    sentences = Sentences(datasets.Dataset.load_from_disk(folder).data.column("ids"))
    assert [sentences[i].tolist() for i in range(len(sentences))] == rows
    assert sentences.lengths.tolist() == [len(row) for row in rows]
    assert (sentences[0].dtype, sentences.lengths.dtype) == (np.int32, np.int32)
    assert not sentences[0].flags.writeable
    assert pa.total_allocated_bytes() - before < 4096
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            sentences[outside]


def test_sentences_in_memory():
    sentences = Sentences.of([[1, 5, 2], [], [1, 2]])
    assert [ids.tolist() for ids in sentences] == [[1, 5, 2], [], [1, 2]]
    assert sentences.lengths.tolist() == [3, 0, 2]
    assert len(Sentences.of([])) == 0
