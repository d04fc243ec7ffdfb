"""The text of a sweep report."""

from distvae.sweeps.account import gather
from distvae.sweeps.progress import Trial
from distvae.sweeps.summary import by_elbo, endings, summary
from distvae.system.markdown import escaped
from tests.sweep_folders import large_sweep, scores, sweep_of, write_run, write_sweep
from tests.sweeps.pages import page


def test_the_summary_tells_the_sweep_in_a_paragraph(small):
    text = summary(gather(small))
    for part in ("6 trials of 2 hyperparameters", "4 finished, 1 stopped, 1 failed", "3 min 20 s on 2 nodes",
                 "2 side by side", "in 2 starts", "The best is trial 5 (λ = 4, χ = 0.3): NLL 17.90 ± 0.15",
                 "−ELBO 18.82", "KL 4.10 for λ = 4", "MI 3.70", "AU 4 of 4", "test NLL 18.02 ± 0.16 with K = 500",
                 "Of the 5 judged trials 3 (60%) have their KL within 10% of λ"):  # fmt: skip
        assert part in text, part
    assert text in (small / "sweep.md").read_text(encoding="utf-8")
    assert text in page(small).words


def test_what_the_bound_would_have_chosen_is_told(small):
    text = by_elbo(gather(small))
    assert "By −ELBO alone trial 3 would have won: −ELBO 18.20 against 18.82 of trial 5" in text
    assert "KL of 0.02 for λ = 4 against 4.10" in text
    assert text in (small / "sweep.md").read_text(encoding="utf-8")
    assert text in page(small).words


def test_what_failed_or_was_stopped_is_told_with_its_reason(small):
    lines = [
        "trial 2 failed: kl.multiplier = <b>0.5</b> | is no good",
        "trial 4 stopped: ended by asha, for others do better",
    ]
    assert endings(gather(small)) == lines
    for line in lines:
        assert line in page(small).words  # as text, and not as markup
        assert f"- {escaped(line)}\n" in (small / "sweep.md").read_text(encoding="utf-8")


def test_trials_with_the_same_reason_are_told_together(tmp_path):
    large_sweep(tmp_path / "large")
    assert endings(gather(tmp_path / "large")) == [
        "trials 0, 7, 14, 21 stopped: stop.hours = 1 have passed",
        "trial 4 failed: the loss or gradient of step 12 is not finite",
        "trials 5, 24 had not ended when this report was written",
    ]


def test_a_sweep_none_of_whose_trials_has_its_kl_right_says_so(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_run(asked.folder / "trials" / "0000", scores(20, 3, 2, 2))
    write_sweep(asked, [Trial(0, {"kl.target_rate": 2, "kl.multiplier": 0.1}, "finished")])
    text = summary(gather(asked.folder))
    assert "No trial meets the constraints; the nearest is trial 0" in text
    assert "Of the 1 judged trial 0 (0%) have" in text
