import sys
from dataclasses import replace

import pytest

from distvae.evaluation.liveness import Latent
from distvae.evaluation.scores import Estimate
from distvae.reports.comparison import remarks, show, table
from distvae.runs.results import Results, StageEnd
from tests.runs.scored import COLLAPSED, CURED

BOTH = {"kla": COLLAPSED, "pt_kla_sfb": CURED}


def printed(results: dict[str, Results], capsys: pytest.CaptureFixture) -> list[str]:
    show(results)
    return capsys.readouterr().out.splitlines()


# -- The table ---------------------------------------------------------------------------------------------------------

ROWS = {
    "RE": ("33.11 ± 0.11", "27.33 ± 0.13"),
    "KL": ("0.01 ± 0.01", "4.13 ± 0.03"),
    "−ELBO": ("33.12 ± 0.12", "31.46 ± 0.14"),
    "NLL": ("33.12 ± 0.12", "30.44 ± 0.14"),
    "floor under NLL, −log p*(x)": ("20.12 ± 0.13", "20.12 ± 0.13"),
    "PPL": ("25.67 ± 0.32", "19.74 ± 0.34"),
    "ELBO PPL": ("25.68 ± 0.32", "21.82 ± 0.34"),
    "floor under PPL": ("7.13 ± 0.13", "7.13 ± 0.13"),
    "AU, active units": ("0 of 2", "2 of 2"),
    "MI, mutual information": ("0.02 ± 0.02", "4.04 ± 0.04"),
}


def cells(results: dict[str, Results]) -> dict[str, tuple[str, ...]]:
    columns = [list(column.cells) for column in table(results).columns]
    return {row[0]: row[1:] for row in zip(*columns, strict=True)}


def test_the_table_sets_every_score_of_every_run_side_by_side():
    assert cells(BOTH) == ROWS
    assert [str(column.header) for column in table(BOTH).columns][1:] == ["kla", "pt_kla_sfb"]


def test_the_table_leaves_out_what_no_run_has_and_marks_what_one_lacks():
    no_floor = replace(CURED, floor=None)
    assert cells({"a": no_floor, "b": no_floor}).keys() == {row for row in ROWS if "floor" not in row}
    assert cells({"a": COLLAPSED, "b": no_floor})["floor under PPL"] == ("7.13 ± 0.13", "–")


def test_the_table_names_its_split():
    assert table(BOTH).columns[0].header.plain.startswith("test ")
    other = replace(CURED, split="valid")
    assert table({"a": COLLAPSED, "b": other, "c": CURED}).columns[0].header.plain.startswith("test/valid ")


def test_show_prints_the_table_whole(capsys):
    lines = printed(BOTH, capsys)
    for name, values in ROWS.items():
        assert sum(line.split() == [*name.split(), *" ".join(values).split()] for line in lines) == 1, name
    header = next(line for line in lines if "pt_kla_sfb" in line)
    assert header.split()[-2:] == ["kla", "pt_kla_sfb"]


@pytest.mark.parametrize("terminal", [False, True])
def test_show_prints_the_papers_five_rows_whole_on_80_columns(terminal, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    names = ["ae", "kla", "pt_kla", "pt_kla_fb", "pt_kla_sfb"]
    out = "\n".join(printed(dict.fromkeys(names, CURED), capsys))
    assert "…" not in out
    if not terminal:  # on one, a cell may be wrapped
        for name in names:
            assert name in out
        for row, (_, value) in ROWS.items():
            assert any(line.startswith(row) and line.count(value) == 5 for line in out.splitlines()), row


def test_show_takes_names_as_they_are(capsys):
    names = ["sweep[lr=0.5]", "b[/b]", "[red]c"]
    results = dict.fromkeys(names, replace(CURED, stages=(StageEnd("train", 40, False, 33),)))
    lines = printed(results, capsys)
    for name in names:
        assert any(line.startswith("test sentences") and name in line for line in lines), name
    assert set(remarks(results)) <= set(lines)


# -- Remarks -----------------------------------------------------------------------------------------------------------


def warnings(results: dict[str, Results]) -> list[str]:
    return [line for line in remarks(results) if line.startswith("WARNING")]


def test_remarks_say_how_the_numbers_came_about(capsys):
    lines = remarks(BOTH)
    assert len(lines) == 1  # the same for both runs
    for part in ("6,000 sentences", "61,234 tokens", "K = 500", "499 of them effective", "seed 3", "ln 6,000",
                 "0123456789abcdef", "411"):  # fmt: skip
        assert part in lines[0], part
    assert lines[0] in printed(BOTH, capsys)


def test_remarks_that_differ_name_their_runs():
    other = replace(CURED, scores=replace(CURED.scores, importance_samples=50, effective_samples=12.3))
    first, second = remarks({"kla": COLLAPSED, "other": other})
    assert first.startswith("kla: ")
    assert "K = 500" in first
    assert second.startswith("other: ")
    assert "K = 50 " in second
    assert "12 of them effective" in second


def test_remarks_without_importance_samples_do_not_speak_of_an_nll():
    scores = replace(CURED.scores, importance_samples=0, nll=None, ppl=None, effective_samples=None, nll_excess=None)
    lines = remarks({"a": replace(CURED, scores=scores)})
    assert "6,000 sentences" in lines[0]
    assert not any("NLL" in line for line in lines)


def test_all_well_gives_no_warning(capsys):
    assert warnings(BOTH) == []
    assert not any("WARNING" in line for line in printed(BOTH, capsys))


def test_a_broken_bound_is_a_warning(capsys):
    broken = replace(CURED, scores=replace(CURED.scores, nll_excess=Estimate(0.35, 0.1)))
    (line,) = warnings({"kla": COLLAPSED, "mine": broken})
    assert line.startswith("WARNING mine: NLL exceeds −ELBO by 0.35 ± 0.10")
    assert line in printed({"kla": COLLAPSED, "mine": broken}, capsys)


def test_a_stage_that_did_not_converge_is_told(capsys):
    stages = (StageEnd("pretrain", 12, True, 9), StageEnd("train", 40, False, 33))
    results = {"kla": COLLAPSED, "mine": replace(CURED, stages=stages)}
    assert "mine: train ended at its limit of 40 epochs, not converged" in printed(results, capsys)
    assert not any("pretrain" in line for line in remarks(results))


def test_a_run_without_a_best_is_a_warning(capsys):
    results = {"mine": replace(CURED, stages=(StageEnd("train", 40, False, None),))}
    (line,) = warnings(results)
    assert line.startswith("WARNING mine: no epoch of train qualified as the best")
    assert "of epoch 40, were scored" in line
    assert line in printed(results, capsys)
    assert not any("not converged" in other for other in remarks(results))


@pytest.mark.parametrize(
    ("epochs", "best", "passed_over", "warns"),
    [(12, 5, 7, True), (12, 5, 4, True), (13, 5, 4, False), (8, 5, 3, True), (7, 5, 2, False)],
)
def test_early_weights_of_a_swinging_weight_are_a_warning(epochs, best, passed_over, warns):
    stages = (StageEnd("train", epochs, False, best, passed_over),)
    lines = warnings({"mine": replace(CURED, stages=stages)})
    assert len(lines) == warns
    for line in lines:
        assert line.startswith(
            f"WARNING mine: train keeps the weights of epoch {best} of {epochs}, because in {passed_over}"
        )
        assert "kl.multiplier" in line


@pytest.mark.parametrize("change", [{"vocabulary": "f" * 16}, {"data": "f" * 16}])
def test_other_words_or_sentences_are_a_warning(change, capsys):
    results = {"kla": COLLAPSED, "mine": CURED, "other": replace(CURED, **change)}
    (line,) = warnings(results)
    assert "different data or vocabularies" in line
    assert line in printed(results, capsys)


def test_unknown_words_are_beside_the_ppl_and_many_are_a_warning():
    results = {"few": replace(CURED, unknown=0.01), "many": replace(CURED, unknown=0.12)}
    assert cells(results)["unknown words"] == ("1.00%", "12.00%")
    (line,) = warnings(results)
    assert line.startswith("WARNING many: 12.00% of the words are unknown")


def test_a_latent_that_is_not_alive_is_a_warning_with_advice():
    results = {
        "kla": replace(COLLAPSED, latent=Latent("dead", "Try this")),
        "mine": replace(CURED, latent=Latent("alive")),
    }
    assert cells(results)["latent"] == ("dead", "alive")
    assert warnings(results) == ["WARNING kla: the latent is dead: Try this"]


def test_a_language_model_draws_nothing():
    scores = replace(
        COLLAPSED.scores, kl_per_dimension=(), importance_samples=0, effective_samples=None, nll_excess=None
    )
    (line,) = remarks({"lm": replace(COLLAPSED, scores=scores)})
    assert line == "6,000 sentences, 61,234 tokens; no z, so the NLL is exact; vocabulary 0123456789abcdef of 411"
    assert cells({"lm": replace(COLLAPSED, scores=scores)})["AU, active units"] == ("0 of 0",)
