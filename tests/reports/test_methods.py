import json
import math
import os
import re

import numpy as np
import pytest

from distvae.reports.methods import difference, distance, gather, method_of, read_run, steadiness
from distvae.system.errors import UserError
from distvae.system.formats import FormatError
from tests.paper_folders import PAPER, TOKENS, N, config_of, sentence_scores, write_run, write_table

KINDS = ["AE", "KLA", "PT + KLA", "PT + KLA + FB", "PT + KLA + SFB"]


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """All rows under three seeds. Tests leave them as they are."""
    return gather(write_table(tmp_path_factory.mktemp("methods"), seeds=3))


def test_methods_have_the_papers_names(tmp_path):
    assert [method_of(config_of(row, tmp_path)) for row in PAPER] == KINDS


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"pretrained": None}, "PT + KLA + SFB"),
        ({"pretrained": None, "pretrain": {"max_epochs": 0}}, "KLA + SFB"),
        ({"kl": {"policy": "linear", "weight": 0}}, "AE"),
        ({"kl": {"policy": "constant", "weight": 0}}, "AE"),
        ({"kl": {"policy": "constant"}}, "PT"),
        ({"kl": {"policy": "linear", "anneal_epochs": 0, "free_bits": "batch"}}, "PT + FB"),
        ({"pretrained": None, "pretrain": {"max_epochs": 0}, "kl": {"policy": "constant"}}, "VAE"),
        ({"kl": {"free_bits": "sentence"}}, "PT + KLA + FB + SFB"),
        ({"model": {"pooling": "max"}}, "PT + max pooling + KLA + SFB"),
        (
            {
                "pretrained": None,
                "pretrain": {"max_epochs": 0},
                "kl": {"policy": "constant"},
                "model": {"latent_size": 0},
            },
            "LSTM-LM",
        ),
        (
            {
                "pretrained": None,
                "pretrain": {"max_epochs": 0},
                "kl": {"policy": "linear"},
                "inference": {"training": "aggressive"},
            },
            "KLA + Aggressive",
        ),
    ],
)
def test_other_methods_have_names_too(tmp_path, tree, name):
    assert method_of(config_of("pt_kla_sfb", tmp_path, **tree)) == name


def test_runs_that_differ_in_their_seed_are_one_method(three_seeds):
    assert [method.name for method in three_seeds] == KINDS
    assert [[run.config.seed for run in method.runs] for method in three_seeds] == [[0, 1, 2]] * 5


def test_what_no_number_depends_on_parts_no_method(tmp_path):
    write_run(tmp_path / "a", "kla")
    write_run(tmp_path / "b", "kla", seed=1, cpu_threads=2, checkpoint={"keep": 5})
    assert len(gather([tmp_path / "a", tmp_path / "b"])) == 1


def test_methods_of_a_kind_are_told_apart_by_what_they_differ_in(tmp_path):
    write_run(tmp_path / "four", "pt_kla_sfb")
    write_run(tmp_path / "eight", "pt_kla_sfb", kl={"target_rate": 8.0, "multiplier": 0.2})
    names = [method.name for method in gather([tmp_path / "four", tmp_path / "eight"])]
    assert names == [
        "PT + KLA + SFB (kl.multiplier=0.1, kl.target_rate=4.0)",
        "PT + KLA + SFB (kl.multiplier=0.2, kl.target_rate=8.0)",
    ]


def test_an_option_that_only_some_have_tells_no_methods_apart(tmp_path):
    write_run(tmp_path / "constant", "pt_kla", kl={"policy": "constant"})
    write_run(tmp_path / "linear", "pt_kla", kl={"policy": "linear", "anneal_epochs": 0})
    write_run(tmp_path / "adamw", "pt_kla", kl={"policy": "constant"}, optimizer={"name": "adamw", "weight_decay": 0.1})
    names = [method.name for method in gather([tmp_path / name for name in ("constant", "linear", "adamw")])]
    assert names == [
        "PT (kl.policy=constant, optimizer.name=sgd)",
        "PT (kl.policy=linear, optimizer.name=sgd)",
        "PT (kl.policy=constant, optimizer.name=adamw)",
    ]


def test_a_run_named_twice_counts_once(tmp_path):
    write_run(tmp_path / "a", "kla")
    assert len(gather([tmp_path / "a", str(tmp_path / "a")])[0].runs) == 1


def test_the_same_run_in_two_folders_is_refused(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, "kla")
    with pytest.raises(UserError, match=f"{tmp_path}/a and {tmp_path}/b: are the same run twice"):
        gather([tmp_path / "a", tmp_path / "b"])


def test_runs_of_other_sentences_are_refused(tmp_path):
    write_run(tmp_path / "a", "kla")
    write_run(tmp_path / "b", "pt_kla", corpus="0000000000000000")
    with pytest.raises(UserError, match=f"{tmp_path}/b was scored on other sentences or words than {tmp_path}/a"):
        gather([tmp_path / "a", tmp_path / "b"])


def test_a_score_is_the_mean_over_sentences_and_seeds_with_both_errors(three_seeds):
    fb = three_seeds[3]
    values = np.array([sentence_scores("pt_kla_fb", seed, 0.1 * seed).nll for seed in range(3)])
    found = fb.score("nll")
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.mean(axis=0).std(ddof=1) / math.sqrt(N))
    assert found.spread == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert str(found) == f"{found.mean:.2f} ± {found.error:.2f} ({found.spread:.2f})"


def test_neg_elbo_is_re_and_kl_sentence_by_sentence(three_seeds):
    each = [sentence_scores("kla", seed, 0.1 * seed) for seed in range(3)]
    expected = np.mean([scores.re + scores.kl for scores in each], axis=0)
    found = three_seeds[1].score("neg_elbo")
    assert found.mean == pytest.approx(expected.mean())
    assert found.error == pytest.approx(expected.std(ddof=1) / math.sqrt(N))


def test_the_perplexity_of_seeds_is_their_geometric_mean(three_seeds):
    values = [sentence_scores("kla", seed, 0.1 * seed).nll for seed in range(3)]
    each = [math.exp(value.sum() / TOKENS.sum()) for value in values]
    found = three_seeds[1].perplexity("nll")
    assert found.mean == pytest.approx(math.prod(each) ** (1 / 3))
    assert found.spread == pytest.approx(np.std(each, ddof=1))


def test_an_autoencoder_has_no_nll(three_seeds):
    assert three_seeds[0].score("nll") is None
    assert three_seeds[0].perplexity("nll") is None
    assert three_seeds[0].score("re").mean == pytest.approx(6.9, abs=0.05)


def test_of_one_seed_the_spread_is_not_known(tmp_path):
    write_run(tmp_path / "a", "kla")
    found = gather([tmp_path / "a"])[0].score("re")
    assert found.spread is None
    assert "(" not in str(found)


def test_a_difference_is_taken_sentence_by_sentence(tmp_path):
    """The sentences' own difficulty, 6 nats of it here, falls out of the error."""
    for row in ("kla", "pt_kla_fb"):
        write_run(tmp_path / row, row)
    kla, fb = gather([tmp_path / "kla", tmp_path / "pt_kla_fb"])
    found = difference(fb, kla, "nll")
    paired = sentence_scores("pt_kla_fb").nll - sentence_scores("kla").nll
    assert found.mean == pytest.approx(paired.mean())
    assert found.standard_error == pytest.approx(paired.std(ddof=1) / math.sqrt(N))
    assert found.standard_error < 0.1 * kla.score("nll").error
    back = difference(kla, fb, "nll")
    assert (back.mean, back.standard_error) == (pytest.approx(-found.mean), pytest.approx(found.standard_error))


def test_several_seeds_add_their_own_error_to_a_difference(three_seeds):
    _, kla, _, fb, _ = three_seeds
    each = {row: [sentence_scores(row, s, 0.1 * s).nll for s in range(3)] for row in ("pt_kla_fb", "kla")}
    paired = np.mean(each["pt_kla_fb"], axis=0) - np.mean(each["kla"], axis=0)
    seeds = sum(np.var([value.mean() for value in values], ddof=1) / 3 for values in each.values())
    expected = math.sqrt(paired.var(ddof=1) / N + seeds)
    assert difference(fb, kla, "nll").standard_error == pytest.approx(expected)


def test_a_difference_covers_the_true_one_as_often_as_its_error_says():
    """Of two made-up methods, two seeds each, whose true difference is 0: beyond 2 errors in about 5% of the cases."""

    class Made:
        def __init__(self, values):
            self.values = values

        def of_sentences(self, score):
            return self.values

    rng, beyond = np.random.default_rng(0), 0
    for _ in range(400):
        shared = rng.normal(0, 6, 300)
        one, other = (Made([shared + rng.normal(0, 0.5, 300) + rng.normal(0, 0.1) for _ in range(8)]) for _ in range(2))
        found = difference(one, other, "nll")
        beyond += abs(found.mean) > 2 * found.standard_error
    assert 5 <= beyond <= 40


def test_steadiness_and_distance_are_of_the_epochs_after_annealing(tmp_path):
    write_run(tmp_path / "fb", "pt_kla_fb")
    run = read_run(tmp_path / "fb")
    kl = [4.8 + 0.6 * (-1) ** epoch for epoch in range(11, 17)]
    assert steadiness(run) == pytest.approx(np.std(kl, ddof=1))
    assert distance(run) == pytest.approx(math.sqrt(np.mean((np.array(kl) - 4) ** 2)))


def test_hours_are_of_all_epochs(tmp_path):
    write_run(tmp_path / "kla", "kla")
    assert read_run(tmp_path / "kla").hours == pytest.approx(16 * 3 / 3600)


def test_a_run_that_still_trains_is_read(tmp_path):
    write_run(tmp_path / "kla", "kla", finished=False)
    write_run(tmp_path / "fb", "pt_kla_fb")
    kla, fb = gather([tmp_path / "kla", tmp_path / "fb"])
    assert (kla.finished, kla.score("re"), kla.perplexity("neg_elbo")) == ((), None, None)
    assert len(kla.runs[0].epochs) == 16
    assert fb.finished == fb.runs


# -- What cannot be used -----------------------------------------------------------------------------------------------


def test_a_run_of_a_newer_format_is_refused_for_that(tmp_path):
    write_run(tmp_path / "a", "kla")
    (tmp_path / "a" / "results.json").unlink()
    (tmp_path / "a" / "metrics.jsonl").write_text('{"of": "another form"}\n')
    config = (tmp_path / "a" / "config.yaml").read_text()
    (tmp_path / "a" / "config.yaml").write_text(config.replace("format: 1", "format: 99"))
    with pytest.raises(FormatError, match="config.yaml: has format 99"):
        gather([tmp_path / "a"])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", "{}\n"),
        ("metrics.jsonl", "nonsense\n"),
        ("environment.json", "{"),
        ("results.json", "[]"),
        ("sentences.parquet", "PAR1"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path, name, content):
    write_run(tmp_path / "a", "kla")
    (tmp_path / "a" / name).write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}/a/{name}: "):
        read_run(tmp_path / "a")


CHANGES = {
    # The file, what of it becomes what, and the file that is named.
    "a number becomes a text": ("metrics.jsonl", r'"epoch": 3,', '"epoch": "3",'),
    "NaN seconds": ("metrics.jsonl", r'"seconds": 2\.0', '"seconds": NaN'),
    "endless seconds": ("metrics.jsonl", r'"seconds": 2\.0', '"seconds": 1e300'),
    "negative seconds": ("metrics.jsonl", r'"seconds": 2\.0', '"seconds": -2.0'),
    "half a character": ("environment.json", r"a CPU", r"\\ud800"),
    "a KL that its dimensions contradict": ("metrics.jsonl", r'("valid": .*?"kl": {"mean": )', r"\g<1>1"),
    "a record is missed": ("metrics.jsonl", r"\n.*\n", "\n"),
    "a record twice": ("metrics.jsonl", r"\A(.*\n)", r"\1\1"),
    "no stages": ("results.json", r'(?s)"stages": \[.*?\]', '"stages": []'),
    "other epochs than were recorded": ("results.json", r'"epochs": 16', '"epochs": 17'),
    "a best epoch after the last": ("results.json", r'"best_epoch": 14', '"best_epoch": 41'),
    "RE + KL is not −ELBO": ("results.json", r'("neg_elbo": {\s+"mean": )', r"\g<1>1"),
    "a bound that does not hold": ("results.json", r'"bound_holds": true', '"bound_holds": false'),
    "True for a number": ("results.json", r'"seed": 0', '"seed": true'),
    "too large a number": ("results.json", r'"seed": 0', '"seed": 1e999'),
    "a packages list": ("environment.json", r'(?s)"packages": {.*?}', '"packages": []'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_run_writes_is_one_line_that_names_the_file(tmp_path, change):
    name, old, new = CHANGES[change]
    write_run(tmp_path / "a", "pt_kla_sfb")
    path = tmp_path / "a" / name
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(old, new, text, count=1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    with pytest.raises(UserError, match=f"{path}: .*restore it from a copy"):
        read_run(tmp_path / "a")


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "environment.json", "results.json", "sentences.parquet", "config.yaml"]
)
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "outside", "loop", "sparse"])
def test_what_is_no_file_of_the_run_is_one_line_and_is_not_waited_for(tmp_path, name, what):
    write_run(tmp_path / "a", "kla")
    path = tmp_path / "a" / name
    path.rename(tmp_path / "kept")
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to({"device": "/dev/zero", "outside": tmp_path / "kept", "loop": path}[what])
    with pytest.raises(UserError, match=f"{path}: "):
        read_run(tmp_path / "a")


def test_scores_of_other_results_are_refused(tmp_path):
    for name, row in (("a", "kla"), ("b", "pt_kla")):
        write_run(tmp_path / name, row)
    (tmp_path / "a" / "sentences.parquet").write_bytes((tmp_path / "b" / "sentences.parquet").read_bytes())
    with pytest.raises(UserError, match=r"sentences.parquet: its means are not the scores in .*results.json"):
        read_run(tmp_path / "a")


def test_scores_without_a_column_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    write_run(tmp_path / "a", "kla")
    parquet.write_table(pyarrow.table({"re": [1.0]}), tmp_path / "a" / "sentences.parquet")
    with pytest.raises(UserError, match=r"a/sentences.parquet: cannot be read"):
        read_run(tmp_path / "a")


def test_a_real_run_is_read(finished):
    run = read_run(finished)
    assert [row.stage for row in run.epochs] == ["pretrain"] * 2 + ["train"] * 4
    scores = run.results.scores
    for name in ("re", "kl", "neg_elbo", "nll", "mutual_information"):
        assert run.of_sentences(name).mean() == pytest.approx(getattr(scores, name).mean)
    assert json.loads((finished / "results.json").read_text())["scores"]["tokens"] == run.sentences.tokens.sum()
