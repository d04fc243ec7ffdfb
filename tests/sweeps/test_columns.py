"""The table of trials."""

from distvae.sweeps.account import Account, gather
from distvae.sweeps.columns import TrialColumn, columns
from distvae.sweeps.progress import Trial
from distvae.sweeps.report import write_report
from distvae.sweeps.summary import summary
from tests.sweep_folders import ORDER, large_sweep, pbt_sweep, scores, small_sweep, sweep_of, write_run, write_sweep
from tests.sweeps.pages import SweepPage, cells


def titles(account: Account) -> list[str]:
    return [column.title for column in columns(account)]


def column(account: Account, title: str) -> TrialColumn:
    (found,) = (column for column in columns(account) if column.title == title)
    return found


def test_every_column_has_a_meaning_except_for_the_config_keys(tmp_path):
    account = gather(small_sweep(tmp_path / "run").folder)
    assert [one.title for one in columns(account) if not one.meaning] == ["λ kl.target_rate", "χ kl.multiplier"]


def test_columns_sort_by_numbers_and_not_by_their_texts(tmp_path):
    account = gather(small_sweep(tmp_path / "run").folder)
    for title in ("NLL, K = 50", "AU", "KL is right", "time", "test NLL, K = 500"):
        keys = [column(account, title).key(entry) for entry in account.entries]
        assert all(isinstance(key, (int, float)) for key in keys if key is not None), title
    sort_key = column(account, "NLL, K = 50").key
    assert [sort_key(entry) for entry in account.entries] == [17.9, 18.4, 19.5, 18.9, 18.2, None]
    assert [column(account, "trial").text(entry) for entry in account.entries] == [*map(str, ORDER), "2"]


def test_a_lambda_that_is_not_swept_has_a_column_of_its_own(tmp_path):
    asked = sweep_of(tmp_path / "run", space={"seed": {"grid": [0, 1]}}, num_samples=1)
    write_run(asked.folder / "trials" / "0000", scores(20, 4.1, 3, 2))
    write_sweep(asked, [Trial(0, {"seed": 0}, "finished")])
    account = gather(asked.folder)
    (text,) = (column.text(account.entries[0]) for column in columns(account) if column.title == "λ")
    assert text == "4"


def test_without_constraints_there_is_no_column_on_them(tmp_path):
    asked = sweep_of(tmp_path / "run", objective={"kl_tolerance": None})
    write_sweep(asked, [])
    assert "KL is right" not in titles(gather(asked.folder))


def test_two_objectives_have_a_front(tmp_path):
    account = gather(large_sweep(tmp_path / "run").folder)
    front = column(account, "front")
    assert front.meaning == "no other trial beats it in both NLL and MI"
    assert [entry.number for entry in account.entries if front.text(entry) == "yes"] == account.front != []


def test_a_continued_trial_is_named_with_its_generation(tmp_path):
    account = gather(pbt_sweep(tmp_path / "run").folder)
    assert [column(account, "trial").text(entry) for entry in account.entries] == ["1.1", "0"]


def test_trials_lead_to_their_run_folders_and_logs(tmp_path):
    folder = pbt_sweep(tmp_path / "run").folder
    (folder / "logs").mkdir()
    (folder / "logs" / "0001.log").touch()
    write_report(folder)
    links = SweepPage((folder / "sweep.html").read_text(encoding="utf-8")).links
    assert links == ["trials/0001.1/", "logs/0001.log", "trials/0000/"]
    assert all((folder / link).exists() for link in links)


def test_trials_are_in_their_order_with_their_numbers(small):
    rows = cells((small / "sweep.md").read_text(encoding="utf-8"))
    assert [row["trial"] for row in rows] == [*map(str, ORDER), "2"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "–"]
    assert rows[0] == {
        "rank": "1", "trial": "5", "λ kl.target_rate": "4", "χ kl.multiplier": "0.3", "state": "finished",
        "epochs": "7 of 8", "NLL, K = 50": "17.90 ± 0.15", "KL": "4.10", "KL is right": "yes", "−ELBO": "18.82",
        "AU": "4 of 4", "MI": "3.70", "latent": "alive", "γ": "0.6", "validation NLL, K = 500": "17.65 ± 0.15",
        "test NLL, K = 500": "18.02 ± 0.16", "time": "30 s",
    }  # fmt: skip
    assert [row["KL is right"] for row in rows] == ["yes", "yes", "yes", "0.60 off", "3.58 off", "–"]
    assert [row["test NLL, K = 500"] for row in rows[1:3]] == ["18.52 ± 0.16", "–"]
    assert set(list(rows[-1].values())[5:-1]) == {"–"}


def test_a_metric_that_is_not_always_shown_is_when_it_judges(tmp_path):
    asked = sweep_of(tmp_path / "run", objective={"metric": "ppl", "kl_tolerance": None})
    for number, nll in enumerate((20, 19)):
        write_run(asked.folder / "trials" / f"{number:04d}", scores(nll, 1, 1, 2))
    write_sweep(asked, [Trial(n, {"kl.target_rate": 2}, "finished") for n in (0, 1)])
    rows = cells(write_report(asked.folder) and (asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [(row["trial"], row["PPL"]) for row in rows] == [("1", "6.69"), ("0", "7.39")]
    assert "KL is right" not in rows[0]
    assert "within" not in summary(gather(asked.folder))


def test_a_trial_without_a_lambda_has_no_kl_to_be_held_to(tmp_path):
    asked = sweep_of(
        tmp_path / "run",
        space={
            "kl.policy": {"grid": ["soft_free_bits", "linear"]},
            "kl.target_rate": {"grid": [2, 4], "when": {"kl.policy": "soft_free_bits"}},
        },
        num_samples=1,
    )
    for number, kl in enumerate((2.0, 3.0, 3.0)):
        write_run(asked.folder / "trials" / f"{number:04d}", scores(20 - number, kl, 0.9 * kl, 3))
    write_sweep(asked, [Trial(n, values, "finished") for n, values in enumerate(asked.points())])
    account = write_report(asked.folder)
    rows = cells((asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [(row["trial"], row["λ"], row["KL is right"]) for row in rows] == [
        ("2", "–", "–"), ("0", "2", "yes"), ("1", "4", "0.60 off"),
    ]  # fmt: skip
    assert "Of the 2 judged trials with a λ 1 (50%) has its KL within 10% of λ." in summary(account)
