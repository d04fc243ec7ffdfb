from rich.table import Table

from distvae.evaluation.gain import Gain
from distvae.reports.gain import PLACES, parts
from distvae.runs.gain import GainOverBaseline
from tests.evaluation.test_gain import scores_of


def shown_of(lengths, effective):
    """The rows of each table, and the lines between them."""
    rows = [[1.0] * length for length in lengths]
    gain = Gain.of(scores_of(rows, effective[0]), scores_of(rows, effective[1]))
    found = GainOverBaseline("test", 0, 500, ("mine", "lm"), ("a", "b"), gain)
    tables, lines = [], []
    for part in parts(found):
        if isinstance(part, Table):
            heads = [str(column.header) for column in part.columns]
            tables.append(
                [heads, *zip(*([str(cell) for cell in column.cells] for column in part.columns), strict=True)]
            )
        else:
            lines.append(part)
    return tables, lines


def test_groups_and_positions_have_their_rows():
    (lengths, positions), lines = shown_of([1, 3, 3, PLACES + 1], (7.0, None))
    assert [row[0] for row in lengths[1:]] == ["all", "  1 token", "  3 tokens", f"  {PLACES + 1} tokens"]
    assert lengths[0][1:] == ["number", "lm", "mine", "gain"]
    assert positions[0][-1] == "effective"
    assert positions[1] == ("token 1", "4", "1.00 ± 0.00", "1.00 ± 0.00", "0.00 ± 0.00", "7.0")
    assert len(positions) == 1 + PLACES
    assert "the file has 1 more position" in lines
    assert any(line.startswith("K = 500 draws of z") for line in lines)


def test_exact_models_have_no_draws():
    (_, positions), lines = shown_of([2, 2], (None, None))
    assert positions[0][-1] == "gain"
    assert lines == [""]


def test_the_effective_samples_of_two_vaes_name_them():
    (_, positions), _ = shown_of([2, 2], (7.0, 9.0))
    assert positions[0][-2:] == ["effective, mine", "effective, lm"]
    assert positions[1][-2:] == ("7.0", "9.0")
