"""Corpora in shards beside the same ones opened whole, and preparations that are killed."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from distvae.config.schema import DataConfig
from distvae.data import corpus, ranges, sharding, sources, workplace
from distvae.data.sentences import OPEN_SHARDS, Sentences, Shards
from distvae.system.errors import UserError
from tests.conftest import PATIENCE, wait_until
from tests.data.corpora import error_of, prepare, sentences, write_folder

SHARD = 8  # more than 16 of them: more than 128 sentences


def text(count: int, seed: int = 0) -> str:
    """Sentences of few words, some of them alike, some empty and some long."""
    rng = random.Random(seed)
    kinds = ["", "  ", " ".join(["long"] * 12)]
    words = [f"w{i}" for i in range(12)]
    lines = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(count)]
    for kind in kinds:
        lines[rng.randrange(count)] = kind
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "text", train=text(300), valid=text(30, 1), test=text(40, 2))


# -- Beside a corpus that is opened whole ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {}, {"max_words": 5}, {"distinct": True}, {"disjoint": True}, {"distinct": True, "disjoint": True, "max_words": 3},
    {"min_count": 3, "unk": "single"}, {"tokenizer": "characters"},
    {"tokenizer": "treebank"}, {"valid_size": 10, "test_size": 99},
], ids=str)  # fmt: skip
def test_a_corpus_in_shards_is_the_one_that_is_opened_whole(folder, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(ranges, "BUCKET", 70)
    whole = prepare(tmp_path, path=folder, **settings)
    found = prepare(tmp_path, path=folder, shard_size=SHARD, **settings)
    assert (type(whole.train), type(found.train)) == (Sentences, Shards)
    assert found.fingerprint != whole.fingerprint
    assert found.vocabulary == whole.vocabulary
    assert sorted(found.notes) == sorted(whole.notes)
    assert found.unknown == whole.unknown
    for split in ("train", "valid", "test"):
        one, other = getattr(found, split), getattr(whole, split)
        assert [ids.tolist() for ids in one] == [ids.tolist() for ids in other]
        assert (len(one), one.tokens, one.longest) == (len(other), other.tokens, other.longest)
    numbers = np.random.default_rng(0).permutation(len(whole.train))[:50]
    assert found.train.lengths_of(numbers).tolist() == whole.train.lengths_of(numbers).tolist()
    assert found.valid.characters is None or found.valid.characters.tolist() == whole.valid.characters.tolist()


def test_a_trained_tokenizer_learns_from_all_of_train(folder, tmp_path):
    given = {"path": folder, "cache": str(tmp_path / "cache"), "workers": 1, "tokenizer": "bpe", "vocabulary_size": 270}
    whole, found = (
        corpus.load(corpus.prepare(DataConfig(**given, **settings), progress=False))
        for settings in ({}, {"shard_size": SHARD})
    )
    assert isinstance(found.train, Shards)
    assert found.vocabulary == whole.vocabulary
    assert [ids.tolist() for ids in found.train] == [ids.tolist() for ids in whole.train]


def test_several_processes_prepare_the_same_corpus(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "BUCKET", 70)
    data = DataConfig(path=folder, shard_size=SHARD, distinct=True, min_count=1)
    alone = corpus.prepare(DataConfig(**vars(data) | {"cache": str(tmp_path / "alone"), "workers": 1}), progress=False)
    three = corpus.prepare(DataConfig(**vars(data) | {"cache": str(tmp_path / "three"), "workers": 3}), progress=False)
    assert manifest(alone) == manifest(three)
    assert [path.name for path in (tmp_path / "three").iterdir()] == [three.name]


def manifest(folder):
    found = json.loads((folder / "manifest.json").read_bytes())
    # Where `datasets` writes a random number.
    return found | {
        "files": {name: digest for name, digest in found["files"].items() if "state.json" not in name},
        "sha256": "",
    }


def test_splits_that_are_cut_and_sampled(tmp_path):
    (tmp_path / "all.txt").write_text(text(1000), encoding="utf-8")
    settings = {"path": str(tmp_path / "all.txt"), "shard_size": 2 * SHARD, "distinct": True, "max_words": 5}
    found, again = prepare(tmp_path, **settings), prepare(tmp_path, **settings, valid_size=30, train_size=200)
    other = prepare(tmp_path, **settings, valid_size=30, train_size=200, seed=1)
    parts = [sentences(found, split) for split in corpus.SPLITS]
    every = [sentence for part in parts for sentence in part]
    lines = {line.strip() for line in text(1000).splitlines()} - {"", " ".join(["long"] * 12)}
    assert sorted(every) == sorted(lines)
    assert len(parts[1]) == len(parts[2]) == len(lines) // 10
    assert [len(getattr(again, split)) for split in corpus.SPLITS] == [200, 30, len(lines) // 10]
    assert not {*sentences(again, "train")} & {*sentences(again, "valid"), *sentences(again, "test")}
    assert {*sentences(again, "train")} != {*sentences(other, "train")}
    assert isinstance(again.train, Shards)


def test_every_sample_is_equally_likely(tmp_path):
    counts, drawn = (10, 0, 30, 60), []
    for seed in range(400):
        rows = ranges.Rows(None, (), DataConfig(seed=seed), tmp_path, "", counts)
        drawn.append(rows.shares(20))
    assert {sum(shares) for shares in drawn} == {20}
    share = np.array(counts) / 100
    # Of a hypergeometric distribution: n·p, and n·p·(1 − p)·(N − n)/(N − 1).
    error = np.sqrt(20 * share * (1 - share) * 80 / 99 / 400)
    assert (np.abs(np.mean(drawn, axis=0) - 20 * share) <= 4 * error).all()
    assert np.var(drawn, axis=0)[3] == pytest.approx(20 * 0.6 * 0.4 * 80 / 99, rel=0.3)
    with pytest.raises(UserError, match="data.train_size: cannot sample from 1,000,000,000 sentences"):
        ranges.Rows(None, (), DataConfig(), tmp_path, "", (10**9,)).shares(20)


@pytest.mark.parametrize(("rows", "size"), [(1, 10**9), (7, 10**9), (1000, 40), (1000, 1), (3, 21)])
def test_ranges_have_at_most_so_many_rows_and_bytes(tmp_path, monkeypatch, rows, size):
    monkeypatch.setattr(ranges, "RANGE_BYTES", size)
    lengths = [len(line) for line in text(100).splitlines()]
    source = Dataset.from_dict({"text": ["x" * length for length in lengths[:50]] + [None] + ["y" * 99]})
    source = source.map(lambda batch: batch, batched=True, batch_size=9, writer_batch_size=9)
    ends = ranges.Rows.of(source, DataConfig(shard_size=rows), tmp_path).ends
    assert ends[-1] == 52
    assert list(ends) == sorted({*ends})
    for start, end in zip((0, *ends), ends, strict=False):
        held = [len(row or "") for row in source[start:end]["text"]]
        assert len(held) <= rows
        assert sum(held) <= size or len(held) == 1
        if end < 52 and len(held) < rows:  # the next row did not fit
            assert sum(held) + len(source[end]["text"] or "") > size


def test_small_corpora_and_those_with_labels_are_opened_whole(folder, tmp_path):
    assert isinstance(prepare(tmp_path, path=folder, shard_size=300 // 16 + 1).train, Sentences)
    lines = "".join(f"{'ab'[i % 2]}\tw{i % 7} x\n" for i in range(300))
    labelled = write_folder(tmp_path / "labelled", train=lines, valid="a\tx\n", test="b\tx\n")
    found = prepare(tmp_path, path=labelled, label="kind", shard_size=SHARD)
    assert isinstance(found.train, Sentences)
    assert "train: 300 sentences are held in memory, because data.label compares all of them" in found.notes


def test_bad_input_leaves_nothing_behind(tmp_path):
    folder = write_folder(tmp_path / "text", train="\n" * 200)
    assert error_of(tmp_path, path=folder, shard_size=SHARD) == (
        f"{folder}/train.txt: contains no sentences: 200 empty lines left out"
    )
    folder = write_folder(tmp_path / "text", train="a dog\n" * 200, valid="a cat\n", test="a dog\n")
    assert "data.disjoint leaves no sentence of train" in error_of(
        tmp_path, path=folder, shard_size=SHARD, disjoint=True
    )


# -- A preparation that is killed --------------------------------------------------------------------------------------


STEPS = ("_keep", "_repeated", "_distinct", "_disjoint", "_count", "_encode")


def killed(data, step):
    """Prepare a corpus, and die in the sixth range of a step."""
    real, taken = getattr(sharding, step), []

    def die(rows, number, **given):
        taken.append(number)
        if len(taken) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(rows, number, **given)

    setattr(sharding, step, die)
    corpus.prepare(data, progress=False)


@pytest.mark.parametrize("step", STEPS)
def test_the_next_preparation_goes_on(folder, tmp_path, monkeypatch, step):
    monkeypatch.setattr(ranges, "BUCKET", 40)
    data = DataConfig(
        path=folder, cache=str(tmp_path / "cache"), shard_size=SHARD, workers=1, distinct=True, disjoint=True
    )  # fmt: skip
    process = multiprocessing.get_context("fork").Process(target=killed, args=(data, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name == f".{corpus.fingerprint(data)}-{workplace.WORK}"
    taken = {name: [] for name in STEPS}
    for name in STEPS:
        real = getattr(sharding, name)

        def watch(rows, number, real=real, numbers=taken[name], **given):
            numbers.append(number)
            return real(rows, number, **given)

        monkeypatch.setattr(sharding, name, watch)
    monkeypatch.setattr(sources, "load", None)  # all is read
    found = corpus.prepare(data, progress=False)
    before = STEPS[: STEPS.index(step)]
    assert [taken[name] for name in before] == [[]] * len(before)
    shards = len(taken["_encode"]) + 5 * (step == "_encode")
    steps = {"_repeated": -(-300 // 40), "_encode": shards}.get(step, -(-300 // SHARD))
    assert taken[step] == list(range(5, steps))
    monkeypatch.undo()
    straight = corpus.prepare(DataConfig(**vars(data) | {"cache": str(tmp_path / "other")}), progress=False)
    assert manifest(found) == manifest(straight)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.name]


def killed_by_a_worker(data, pids):
    real = sharding._count

    def kill(rows, number, **given):
        (pids / str(os.getpid())).touch()
        if number == 30:
            os.kill(os.getppid(), signal.SIGKILL)
        return real(rows, number, **given)

    sharding._count = kill
    corpus.prepare(data, progress=False)


def test_the_processes_of_a_killed_preparation_end_with_it(folder, tmp_path, capfd):
    data = DataConfig(path=folder, cache=str(tmp_path / "cache"), shard_size=SHARD, workers=2)
    (tmp_path / "pids").mkdir()
    process = multiprocessing.get_context("fork").Process(target=killed_by_a_worker, args=(data, tmp_path / "pids"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    pids = [path.name for path in (tmp_path / "pids").iterdir()]
    assert pids
    wait_until(lambda: not any(is_running(pid) for pid in pids), "the processes still run")
    capfd.readouterr()
    assert len(corpus.load(corpus.prepare(data, progress=False)).train) == 298
    assert "waiting" not in capfd.readouterr().err


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_what_a_killed_preparation_leaves_is_no_part_of_the_next(folder, tmp_path, monkeypatch):
    data = DataConfig(path=folder, cache=str(tmp_path / "cache"), shard_size=SHARD, workers=1)

    def full(built, published):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_publish", full)
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            corpus.prepare(data, progress=False)
    (left,) = (tmp_path / "cache").glob(".*/*/manifest.json")
    left.write_text("{")
    (left.parent / "valid" / "more.arrow").touch()
    found = corpus.prepare(data, progress=False)
    assert not {*manifest(found)["files"]} & {"manifest.json", "valid/more.arrow"}
    assert len(corpus.load(found).train) == 298


def enter_often(folder, times):
    for _ in range(times):
        with workplace.lasting_folder(folder):
            (folder / "inside").touch(exist_ok=False)
            (folder / "inside").unlink()


def test_one_process_at_a_time_is_in_a_lasting_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=enter_often, args=(tmp_path / "work", 100)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match="No space left on device"):
        ranges.save_array(Path("/dev/full"), np.zeros(1 << 20))
    for rows in (np.zeros(0, np.int32), np.arange(5), np.ones(3, sharding._HASH)):
        ranges.save_array(tmp_path / "rows.npy", rows)
        read = np.load(tmp_path / "rows.npy")
        assert read.dtype == rows.dtype
        assert read.tolist() == rows.tolist()


def test_more_ranges_than_a_process_may_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "BUCKET", 100)
    folder = write_folder(tmp_path / "text", train=text(200), valid=text(30, 1), test=text(40, 2))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, limits[1]))
    try:
        found = prepare(tmp_path, path=folder, shard_size=2, distinct=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len({*sentences(found, "train")}) == len(found.train)


def prepared_slowly(data, begun):
    real = sharding._count

    def slow(rows, number, **given):
        begun.set()
        time.sleep(0.1)
        return real(rows, number, **given)

    sharding._count = slow
    corpus.prepare(data, progress=False)


def test_a_second_process_waits_for_the_first(folder, tmp_path, capfd):
    data = DataConfig(path=folder, cache=str(tmp_path / "cache"), shard_size=SHARD, workers=1)
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    first = context.Process(target=prepared_slowly, args=(data, begun))
    first.start()
    assert begun.wait(PATIENCE)
    found = corpus.prepare(data, progress=False)
    first.join()
    assert first.exitcode == 0
    assert len(corpus.load(found).train) == 298
    lines = capfd.readouterr().err.splitlines()
    assert lines.count("data: another process prepares these sentences; waiting for it") == 1
    assert lines.count("data: Tokenising train: 38 parts, 1 at a time") == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.name]


# -- Shards ------------------------------------------------------------------------------------------------------------


def test_a_damaged_shard_is_found_when_it_is_opened(folder, tmp_path):
    found = prepare(tmp_path, path=folder, shard_size=SHARD)
    built = tmp_path / "cache" / found.fingerprint
    shard = built / "train" / "00003.arrow"
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    train = prepare(tmp_path, path=folder, shard_size=SHARD).train
    assert len(train[0]) > 2
    with pytest.raises(UserError, match=f"{shard}: is missing or damaged; delete {built}, and the next training"):
        list(train)
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match="is damaged .train/00003.arrow is missing or has changed"):
        corpus.load(built)
    assert list(map(len, prepare(tmp_path, path=folder, shard_size=SHARD).train)) == list(map(len, found.train))


@pytest.mark.parametrize("settings", [{"train_size": 60}, {"max_words": 1}, {"distinct": True, "disjoint": True}])
def test_a_block_lies_in_three_shards_at_most(folder, tmp_path, settings):
    train = prepare(tmp_path, path=folder, shard_size=SHARD, **settings).train
    sizes = np.diff(train._firsts)
    assert sizes.max() <= SHARD
    assert (sizes[1:] + sizes[:-1]).min() > SHARD


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_shard_is_written_a_few_tokens_at_a_time(folder, tmp_path, monkeypatch, tokens):
    whole = prepare(tmp_path, path=folder, shard_size=SHARD)
    monkeypatch.setattr(sharding, "TOKENS", tokens)
    found = corpus.load(corpus.prepare(DataConfig(
        path=folder, cache=str(tmp_path / "other"), workers=1, shard_size=SHARD, min_count=1
    ), progress=False))  # fmt: skip
    assert found.vocabulary == whole.vocabulary
    assert found.unknown == whole.unknown
    assert [ids.tolist() for ids in found.train] == [ids.tolist() for ids in whole.train]
    assert (found.train.tokens, found.train.longest) == (whole.train.tokens, whole.train.longest)


def test_a_process_keeps_few_shards_open(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("distvae.data.sentences.OPEN_SHARDS", 5)
    train = prepare(tmp_path, path=folder, shard_size=SHARD).train
    expected = list(map(len, train))
    assert len(train._open) == 5
    order = np.random.default_rng(0).permutation(len(train))
    assert [len(train[i]) for i in order.tolist()] == [expected[i] for i in order.tolist()]
    assert train.lengths_of(order).tolist() == [expected[i] for i in order.tolist()]
    for outside in (-1, len(train)):
        with pytest.raises(IndexError):
            train[outside]


def test_an_epoch_opens_the_shards_of_one_group_at_a_time(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "text", train=text(2000))
    train = prepare(tmp_path, path=folder, shard_size=SHARD).train
    opened, real = Counter(), train._opened
    monkeypatch.setattr(train, "_opened", lambda number: opened.update([number]) or real(number))
    plan = train.plan(4, (0, 1, 1))
    seen: list[int] = []
    for number, batch in enumerate(plan):
        seen += batch.tolist()
        group = plan.group(number)
        if number == group.start and plan._next is not None:
            plan._next.result()
        train.lengths_of(batch)
        assert len(train._open) <= OPEN_SHARDS
    # Of each shard: once for its lengths, and once again, if at all, for its sentences, in either group that it is of.
    assert max(opened.values()) <= 4
    assert sorted(seen) == list(range(len(train)))


def test_what_stands_for_a_large_train(folder, tmp_path, monkeypatch, capfd):
    train = prepare(tmp_path, path=folder, shard_size=SHARD).train
    capfd.readouterr()
    assert [ids.tolist() for ids in train.in_memory()] == [ids.tolist() for ids in train]
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("distvae.data.sentences.SAMPLED", 20)
    some = train.in_memory()
    places = np.linspace(0, len(train) - 1, 20).astype(int).tolist()
    assert [ids.tolist() for ids in some] == [train[i].tolist() for i in places]
    assert capfd.readouterr().err == "train: 20 of its 298 sentences, at equal distances, stand for all\n"
