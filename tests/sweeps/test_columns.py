from distvae.sweeps.account import Account, gather
from distvae.sweeps.columns import Column, columns
from distvae.sweeps.progress import Trial
from tests.sweep_folders import ORDER, large_sweep, pbt_sweep, scores, small_sweep, sweep_of, write_run, write_sweep


def titles(account: Account) -> list[str]:
    return [column.title for column in columns(account)]


def column(account: Account, title: str) -> Column:
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
