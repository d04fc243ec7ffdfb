"""Reconstructions whose figures are known."""

import json

import numpy as np
import pytest

from distvae.cli import main
from distvae.evaluation.reconstruction import Reconstruction
from distvae.reports.reconstruction import table

END = 1
RNG = np.random.default_rng(0)
SENTENCES = [[*RNG.integers(2, 50, size=n).tolist(), END] for n in RNG.integers(6, 11, size=40)]


def means(estimates):
    return [estimate.mean for estimate in estimates]


def test_a_decoder_that_copies_all():
    found = Reconstruction.of(SENTENCES, SENTENCES)
    assert means([found.exact, found.length, found.tokens]) == [1, 1, 1]
    assert found.bleu == pytest.approx(1)
    assert means(found.positions) == [1] * max(map(len, SENTENCES))
    assert means(found.parts.values()) == [1, 1, 1]


def test_a_decoder_that_copies_the_first_three_words():
    """What follows has the right length and no right word."""
    copies = [[*row[:3], *(60 for _ in row[3:-1]), END] for row in SENTENCES]
    found = Reconstruction.of(SENTENCES, copies)
    assert (found.exact.mean, found.length.mean, found.bleu) == (0, 1, 0)
    assert means(found.positions[:6]) == [1, 1, 1, 0, 0, 0]
    assert found.tokens.mean == pytest.approx(np.mean([4 / len(row) for row in SENTENCES]))  # and the end
    sevens = [len(row) == 7 for row in SENTENCES if len(row) >= 7]
    assert found.positions[6].mean == pytest.approx(np.mean(sevens))
    assert found.positions[0].standard_error == 0
    # Of 6 to 10 words, the first third has 2, 3, 3, 3 and 4; only the middle one of 6 begins with the third word.
    sizes = [len(row) - 1 for row in SENTENCES]
    assert found.parts["first"].mean == pytest.approx(np.mean([3 / 4 if n == 10 else 1 for n in sizes]))
    middle = [1 / 2 if n == 6 else 0 for n in sizes]
    assert found.parts["middle"].mean == pytest.approx(np.mean(middle))
    assert found.parts["middle"].standard_error == pytest.approx(np.std(middle, ddof=1) / len(middle) ** 0.5)
    assert found.parts["last"].mean == 0


@pytest.mark.parametrize("n", range(1, 12))
def test_every_word_is_in_one_part(n):
    """Word i of n is right alone: the share of its third rises, and no other."""
    sizes = [sum(3 * i // n == part for i in range(n)) for part in range(3)]
    original = [*range(2, 2 + n), END]
    for i in range(n):
        copy = [60] * n + [END]
        copy[i] = original[i]
        found = Reconstruction.of([original], [copy]).parts.values()
        own = 3 * i // n
        expected = [None if not size else (part == own) / size for part, size in enumerate(sizes)]
        assert [part and part.mean for part in found] == expected


def test_sentences_too_short_for_a_part_do_not_count_in_it():
    short = [[2, END], [2, 3, END], [2, 3, 4, END]]
    found = Reconstruction.of(short, [[2, END], [60, 3, END], [2, 60, 4, END]]).parts
    assert (found["first"].mean, found["middle"].mean, found["last"].mean) == (pytest.approx(2 / 3), 0.5, 1)
    assert found["last"].standard_error is None
    alone = Reconstruction.of([[2, END]], [[2, END]])
    assert (alone.parts["middle"], alone.parts["last"]) == (None, None)
    assert table({"own": alone, "next": alone}).row_count == 9


def test_a_decoder_that_stops_early():
    found = Reconstruction.of(SENTENCES, [[*row[:2], END] for row in SENTENCES])
    assert (found.exact.mean, found.length.mean) == (0, 0)
    assert means(found.positions[:4]) == [1, 1, 0, 0]
    assert found.tokens.mean == pytest.approx(np.mean([2 / len(row) for row in SENTENCES]))


def test_words_that_moved_are_in_bleu_alone():
    copies = [[60, *row] for row in SENTENCES]
    found = Reconstruction.of(SENTENCES, copies)
    assert found.length.mean == 0
    assert found.positions[0].mean == 0
    assert 0.8 < found.bleu < 1


def test_bleu_is_that_of_all_sentences():
    """Six words of eight, then none of two: precisions 6/10, 5/8, 4/6 and 3/5. With a word less, a penalty."""
    originals = [[2, 3, 4, 5, 6, 7, 8, 9, END], [10, 11, END]]
    found = Reconstruction.of(originals, [[2, 3, 4, 5, 6, 7, 20, 21, END], [22, 23, END]])
    assert found.bleu == pytest.approx((6 / 10 * 5 / 8 * 4 / 6 * 3 / 5) ** 0.25)
    shorter = Reconstruction.of(originals, [[2, 3, 4, 5, 6, 7, 20, END], [22, 23, END]])
    assert shorter.bleu == pytest.approx((6 / 9 * 5 / 7 * 4 / 5 * 3 / 4) ** 0.25 * np.exp(1 - 10 / 9))


def test_empty_reconstructions_are_no_error():
    found = Reconstruction.of([[2, 3, END]], [[END]])
    assert (found.bleu, found.tokens.mean, found.exact.standard_error) == (0, 0, None)


def test_the_table_has_a_row_for_each_place():
    found = Reconstruction.of(SENTENCES, SENTENCES)
    assert table({"own": found, "next": found}).row_count == 7 + max(map(len, SENTENCES))


def test_the_command_reads_the_test_sentences(finished, capsys):
    assert main(["reconstruct", str(finished), "--statistics", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decoding"]["method"] == "greedy"
    assert {found[name]["sentences"] for name in ("own", "next")} == {20}
    assert list(found["own"]["parts"]) == ["first", "middle", "last"]
    assert main(["reconstruct", str(finished), "--statistics"]) == 0
    shown = capsys.readouterr().out
    assert "20 sentences, in %" in shown
    assert "last third" in shown


def test_bad_input_is_one_line(finished, language_model, capsys):
    assert main(["reconstruct", str(finished), "--statistics", "A man ."]) == 2
    assert capsys.readouterr().err.startswith("distvae: --statistics: reads the test sentences of the run")
    assert main(["reconstruct", str(language_model), "--statistics"]) == 2
    assert "is a language model; it has no latent variable" in capsys.readouterr().err
