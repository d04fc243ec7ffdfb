"""Machines of one run that do not see each other's files, but the run's folder: processes in folders of their own."""

import pytest

from tests.conftest import fork_each


@pytest.fixture
def machines(tmp_path):
    """Two folders in which relative paths mean other things."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    return folders


def train(tmp_path, machines, *arguments, own=((), ())):
    """One run by a process on each machine; returns what each exited with and said. ``own``: arguments of each."""
    group = {
        "processes": 2,
        "environment": {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        "folders": [str(folder) for folder in machines],
        "runs": [[str(argument) for argument in arguments]],
        "own": own,
    }
    ((first, second),) = fork_each(tmp_path, [group])
    return [first.returncode, second.returncode], [(first.stdout, first.stderr), (second.stdout, second.stderr)]


def test_a_machine_without_the_firsts_cache_makes_its_own(tiny, tmp_path, machines):
    codes, said = train(tmp_path, machines, tiny, f"run={tmp_path / 'run'}", "data.cache=cache", "train.max_epochs=1")
    assert codes == [0, 0], said
    first, second = ([path.name for path in (folder / "cache").iterdir()] for folder in machines)
    assert first == second
    assert (tmp_path / "run" / "results.json").exists()


def test_what_only_one_machine_cannot_do_ends_all_with_one_line(tiny, tmp_path, machines):
    (machines[1] / "cache").write_text("no folder")
    codes, said = train(tmp_path, machines, tiny, f"run={tmp_path / 'run'}", "data.cache=cache")
    assert codes == [2, 2], said
    told = [line for _, errors in said for line in errors.splitlines() if line.startswith("distvae: ")]
    assert len(told) == 1
    assert "data.cache=cache: cannot be written" in told[0]


def test_ranks_that_were_started_differently_do_not_train(tiny, tmp_path, machines):
    own = (), ("optimizer.learning_rate=0.2", "seed=1")
    codes, said = train(tmp_path, machines, tiny, f"run={tmp_path / 'run'}", own=own)
    assert codes == [2, 2], said
    told = [line for _, errors in said for line in errors.splitlines() if line.startswith("distvae: ")]
    assert len(told) == 1
    assert "rank 1 has seed=1, but rank 0 has seed=0 (and 1 more): start all ranks with the same command" in told[0]
    assert not (tmp_path / "run").exists()


def test_machines_may_keep_the_same_sentences_in_different_places(tiny, tmp_path, machines):
    text = "\n".join(f"a {color} {thing} ." for color in ("red", "blue", "green") for thing in "abcdefghijkl")
    for folder, name in zip(machines, ("a.txt", "b.txt"), strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    settings = [tiny, f"run={tmp_path / 'run'}", "data={}", "train.max_epochs=1", "pretrain.max_epochs=0"]
    codes, said = train(
        tmp_path, machines, *settings, "data.cache=cache", own=(["data.path=a.txt"], ["data.path=b.txt"])
    )
    assert codes == [0, 0], said
    (machines[1] / "c.txt").write_text(f"{text}\na yellow z .", encoding="utf-8")
    settings += ["data.cache=other", "run=other"]
    codes, said = train(tmp_path, machines, *settings, own=(["data.path=a.txt"], ["data.path=c.txt"]))
    assert codes == [2, 2], said
    assert "data.path=c.txt: rank 1 finds other sentences there" in said[1][1]
