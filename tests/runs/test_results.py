import json
import math
from dataclasses import replace

import numpy as np
import pytest

from distvae.evaluation.scores import Estimate, Scores, SentenceScores
from distvae.runs.attempts import Lease, claim
from distvae.runs.results import StageEnd, load_results, load_sentence_scores, save_results, save_sentence_scores
from distvae.system.errors import UserError
from tests.runs.scored import COLLAPSED, CURED, WITHOUT_NLL


@pytest.mark.parametrize(
    "results",
    [
        COLLAPSED,
        CURED,
        replace(COLLAPSED, floor=None, stages=(StageEnd("train", 5, False, None),)),
        replace(COLLAPSED, scores=WITHOUT_NLL),
        replace(
            COLLAPSED,
            scores=replace(
                WITHOUT_NLL,
                sentences=1,
                tokens=3,
                re=Estimate(1 / 3, None),
                neg_elbo=Estimate(1 / 3 + 0.013, None),
                elbo_ppl=Estimate(math.exp((1 / 3 + 0.013) / 3), None),
                mutual_information=Estimate(0.0, None),
            ),
        ),
    ],
    ids=["collapsed", "cured", "no floor, no best", "no NLL", "one sentence"],
)
def test_results_come_back(tmp_path, results):
    save_results(tmp_path, results)
    assert load_results(tmp_path) == results
    assert load_results(str(tmp_path)) == results


def test_results_of_an_overtaken_start_do_not_get_into_their_place(tmp_path):
    def overtaken():
        raise UserError("another start goes on")

    save_results(tmp_path, COLLAPSED)
    with pytest.raises(UserError, match="another start"):
        save_results(tmp_path, replace(COLLAPSED, start=7), overtaken)
    assert load_results(tmp_path) == COLLAPSED
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_are_plain_json(tmp_path):
    save_results(tmp_path, COLLAPSED)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert content["scores"]["re"] == {"mean": 33.111, "standard_error": 0.112}
    assert content["scores"]["bound_holds"] is True
    assert content["scores"]["kl_per_dimension"] == [0.013, 0.0]
    assert (content["scores"]["importance_samples"], content["scores"]["seed"]) == (500, 3)
    assert content["stages"] == [
        {"stage": "train", "epochs": 31, "converged": True, "best_epoch": 24, "passed_over": 0}
    ]
    assert (content["vocabulary"], content["split"]) == ("0123456789abcdef", "test")


def test_a_run_without_results_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no results\.json; has the run finished\?") as caught:
        load_results(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    ["", "no JSON", "[]", "3", "{}", '{"scores": {}}', '{"scores": 1}', '{"scores": {"bound_holds": true}}', None],
)
def test_what_is_no_results_is_one_line_that_names_the_file(tmp_path, content):
    if content is None:
        save_results(tmp_path, COLLAPSED)
        content = (tmp_path / "results.json").read_text(encoding="utf-8").replace("6000", '"many"')
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_results(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stages_whose_later_epochs_were_mostly_passed_over_are_not_settled():
    assert StageEnd("train", 12, False, 5, 3).settled  # of seven later epochs
    assert not StageEnd("train", 12, False, 5, 4).settled
    assert StageEnd("train", 7, False, 5, 2).settled  # two may be chance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best_epoch": 32}, "the epochs of train contradict each other"),
        ({"passed_over": 32}, "the epochs of train contradict each other"),
    ],
)
def test_results_that_contradict_themselves_are_refused(tmp_path, change, message):
    save_results(tmp_path, replace(COLLAPSED, stages=(replace(COLLAPSED.stages[0], **change),)))
    with pytest.raises(UserError, match=message):
        load_results(tmp_path)


def test_results_of_an_attempt_that_another_has_resumed_are_refused(tmp_path):
    save_results(tmp_path, replace(COLLAPSED, start=1))
    for _ in range(2):
        assert load_results(tmp_path).start == 1
        lease = Lease(tmp_path, claim(tmp_path))
        lease.begin(0)
        lease.release()
    with pytest.raises(UserError, match="was written by attempt 1, and attempt 2 has resumed the run since"):
        load_results(tmp_path)


# -- sentences.parquet -------------------------------------------------------------------------------------------------

EACH = SentenceScores(
    tokens=np.array([3.0, 5.0]), re=np.array([9.0, 10.0]), kl=np.array([1.0, 2.0]),
    mutual_information=np.array([0.5, 0.25]), nll=np.array([9.5, 11.0]),
)  # fmt: skip


def results_of(each: SentenceScores):
    weighted = each.nll is not None
    scores = Scores.of(
        each, active_units=1, kl_per_dimension=(1.5, 0.0), seed=0, importance_samples=5 if weighted else 0,
        effective_samples=2.0 if weighted else None, nll_excess=None,
    )  # fmt: skip
    return replace(COLLAPSED, scores=scores)


@pytest.mark.parametrize("each", [EACH, replace(EACH, nll=None)], ids=["NLL", "no NLL"])
def test_scores_of_sentences_come_back(tmp_path, each):
    save_sentence_scores(tmp_path, each)
    found = load_sentence_scores(tmp_path, results_of(each))
    assert vars(found).keys() == vars(each).keys()
    for name, values in vars(each).items():
        assert np.array_equal(getattr(found, name), values) if values is not None else getattr(found, name) is None


@pytest.mark.parametrize("name", ["tokens", "re", "kl", "mutual_information", "nll"])
def test_scores_of_sentences_whose_means_are_others_are_refused(tmp_path, name):
    changed = getattr(EACH, name) + np.array([0.0, 1.0])
    save_sentence_scores(tmp_path, replace(EACH, **{name: changed}))
    with pytest.raises(UserError, match=r"sentences.parquet: its means are not the scores in .*results.json"):
        load_sentence_scores(tmp_path, results_of(EACH))


def test_a_metric_that_an_older_version_did_not_compute_is_not_checked(tmp_path):
    save_sentence_scores(tmp_path, EACH)
    results = results_of(EACH)
    load_sentence_scores(tmp_path, replace(results, scores=replace(results.scores, ppl=None)))


@pytest.mark.parametrize("each", [replace(EACH, nll=None), replace(EACH, re=np.array([np.nan, 10.0]))])
def test_scores_of_sentences_that_are_missing_are_refused(tmp_path, each):
    save_sentence_scores(tmp_path, each)
    with pytest.raises(UserError, match="its means are not the scores"):
        load_sentence_scores(tmp_path, results_of(EACH))
