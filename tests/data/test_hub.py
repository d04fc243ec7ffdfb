"""Datasets of the hub, from a server of our own with the layout of real repositories: Parquet, no script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pyarrow import parquet

from distvae.data import hub
from distvae.data.hub import KNOWN, is_id
from distvae.system.errors import UserError
from tests.conftest import PATIENCE, ROOT
from tests.data.hub import Hub, commit_of

README = """---
license: mit
configs:
- config_name: films
  data_files:
  - split: train
    path: films/train-*
  - split: validation
    path: films/validation-*
  - split: test
    path: films/test-*
- config_name: books
  data_files: books/train-*
---
# Reviews
"""
NAMES = ["bad", "good"]
FILMS = [(f"film {i} was {NAMES[i % 2]}", i % 2) for i in range(40)]
BOOKS = [(f"{i} books", i % 2) for i in range(40)]


def write_shards(folder: Path, name: str, rows: list[tuple[str, int]], shards: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=NAMES), "idx": Value("int32")})
    for i in range(shards):
        part = rows[i * len(rows) // shards : (i + 1) * len(rows) // shards]
        columns = {"sentence": [s for s, _ in part], "label": [n for _, n in part], "idx": list(range(len(part)))}
        table = Dataset.from_dict(columns, features=features).data.table
        parquet.write_table(table, folder / f"{name}-{i:05}-of-{shards:05}.parquet")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Repositories below ``hub``, and caches beside it."""
    place = tmp_path_factory.mktemp("place")
    reviews = place / "hub" / "acme" / "reviews"
    write_shards(reviews / "films", "train", FILMS, 3)
    write_shards(reviews / "films", "validation", FILMS[:4])
    write_shards(reviews / "films", "test", [(sentence, -1) for sentence, _ in FILMS[4:8]])
    write_shards(reviews / "books", "train", BOOKS, 2)
    (reviews / "README.md").write_text(README)
    write_shards(place / "hub" / "acme" / "plain" / "data", "train", FILMS)
    write_shards(place / "hub" / "acme" / "plain" / "data", "dev", FILMS[:3])
    write_shards(place / "hub" / "gated" / "secret", "train", FILMS)
    scripted = place / "hub" / "acme" / "scripted"
    scripted.mkdir()
    (scripted / "scripted.py").write_text("raise SystemExit\n")
    return place


@pytest.fixture(scope="module")
def server(place):
    server = Hub(place / "hub")
    yield server
    server.shutdown()
    server.server_close()


def environment(place: Path, endpoint: str | None) -> dict[str, str]:
    """The environment of a client; without an endpoint, of an offline one."""
    own = {"HF_HOME": str(place / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    own |= {"HF_HUB_OFFLINE": "1"} if endpoint is None else {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint}
    return {**os.environ, **own}


def ask(place: Path, endpoint: str | None, cases: list[dict]) -> list[dict]:
    """Prepare corpora in a process of its own, because the hub's clients read the environment when imported."""
    given = {"cache": str(place / "cache"), "workers": 1, "min_count": 1, "columns": ["sentence"]}
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.hub"],
        input="".join(json.dumps(given | case) + "\n" for case in cases),
        env=environment(place, endpoint),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


REVIEWS = {"path": "acme/reviews", "label": "label"}
GOOD = {
    "films": REVIEWS | {"subset": "films"},
    "books": REVIEWS | {"subset": "books"},
    "mixed": REVIEWS | {"subset": "films", "split": ["train", "test"], "test_size": 1},
    "plain": {"path": "acme/plain"},
    "shards": {"path": "acme/plain", "shard_size": 2},
}
BAD = [
    (REVIEWS, "data.path=acme/reviews: has several subsets; name one by data.subset: films, books"),
    (REVIEWS | {"subset": "cars"}, "data.subset=cars: acme/reviews has no such subset, only films, books"),
    ({"path": "acme/plain", "subset": "cars"}, "data.subset=cars: acme/plain has no such subset, only default"),
    (
        REVIEWS | {"subset": "films", "split": ["train", "dev"]},
        "data.split: acme/reviews has no split dev, only train, validation, test",
    ),
    (
        REVIEWS | {"subset": "films", "columns": ["text"]},
        "acme/reviews, train: has no column text, only sentence, label, idx; set data.columns=[…] to those with",
    ),
    (
        REVIEWS | {"subset": "films", "label": "class"},
        "train: has no column class, only sentence, label, idx; set",
    ),
    (
        REVIEWS | {"subset": "films", "revision": "v9"},
        "data.revision=v9: acme/reviews has no such branch, tag or commit",
    ),
    (
        {"path": "acme/none"},
        "data.path=acme/none: no such file or folder, nor a dataset of the hub; correct the name, or",
    ),
    ({"path": "nowhere"}, "data.path=nowhere: no such file or folder, nor a dataset of the hub"),
    (
        {"path": "gated/secret"},
        "data.path=gated/secret: is a gated dataset; accept its terms at https://huggingface.co/",
    ),
    ({"path": "acme/scripted"}, "Dataset scripts are no longer supported, but found scripted.py"),
]


@pytest.fixture(scope="module")
def answers(place, server):
    return ask(place, server.endpoint, [*GOOD.values(), *(case for case, _ in BAD)])


@pytest.fixture(scope="module")
def good(answers):
    return dict(zip(GOOD, answers, strict=False))


def test_a_subset_with_splits_and_labels(good, place):
    films = good["films"]
    assert films["rows"]["train"] == [sentence for sentence, _ in FILMS]
    assert films["rows"]["valid"] == [sentence for sentence, _ in FILMS[:4]]
    assert films["labels"]["train"] == {"label": [NAMES[number] for _, number in FILMS]}
    assert films["labels"]["test"] == {"label": [None] * 4}
    assert films["revision"] == commit_of(place / "hub" / "acme" / "reviews")


def test_missing_splits_are_cut_from_train(good):
    books = good["books"]
    assert [len(books["rows"][split]) for split in ("train", "valid", "test")] == [32, 4, 4]
    assert [books["labels"][split]["label"].count("good") for split in ("train", "valid", "test")] == [16, 2, 2]
    assert books["notes"][0] == "valid: 4 sentences cut from train, because there is no such split"
    plain = good["plain"]
    assert plain["rows"]["valid"] == [sentence for sentence, _ in FILMS[:3]]
    assert [len(plain["rows"][split]) for split in ("train", "test")] == [36, 4]


def test_a_large_dataset_is_in_shards(good):
    rows = good["shards"]["rows"]
    assert rows["valid"] == good["plain"]["rows"]["valid"]
    assert [len(rows[split]) for split in ("train", "test")] == [36, 4]
    assert len({*rows["train"]} & {sentence for sentence, _ in FILMS}) == 36
    assert rows["train"] != good["plain"]["rows"]["train"]  # another draw


def test_splits_by_name(good):
    mixed = good["mixed"]
    assert mixed["labels"]["valid"] == {"label": [None] * 4}
    assert mixed["notes"][0] == "test: 1 sentence cut from train, because there is no such split"


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_the_hub_does_not_have(answers, number):
    message = answers[len(GOOD) + number]["error"]
    assert BAD[number][1] in message
    assert "\n" not in message


def test_without_a_network(place, good):
    """What was prepared is found. Another subset is not, and neither is what the cache has of another commit."""
    cases = [
        GOOD["films"],
        GOOD["films"] | {"min_count": 2},
        GOOD["films"] | {"revision": "0" * 40},
        {"path": "acme/other"},
        REVIEWS | {"subset": "films", "revision": "main"},
    ]
    same, again, other, unknown, branch = ask(place, None, cases)
    assert same == good["films"]
    assert len(again["rows"]["train"]) == len(FILMS)
    assert "the hub's cache has another commit of acme/reviews, and there is no network" in other["error"]
    assert "data.path=acme/other: no such file or folder, and it cannot be loaded from the hub (HF" in unknown["error"]
    assert "acme/reviews" in branch["error"]
    (silent,) = ask(place, "http://127.0.0.1:9", [{"path": "acme/other"}])
    assert "cannot be loaded from the hub (Connect" in silent["error"]


def test_a_run_keeps_its_commit(place, server, tiny, good):
    """It trains, its labels are in sentences.parquet, and the same command ends at once after the hub has changed."""
    run = place / "run"
    command = [sys.executable, str(ROOT / "distvae" / "train.py"), str(tiny), f"run={run}", "data.path=acme/reviews",
               "data.subset=films", "data.columns=[sentence]", "data.label=label", "data.split=[train,validation]",
               "data.train_size=null", "data.valid_size=null", "data.test_size=null", "pretrain.max_epochs=0",
               f"data.cache={place / 'cache'}", "train.max_epochs=1", "kl={policy: constant}"]  # fmt: skip

    def train(endpoint: str | None) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, env=environment(place, endpoint), cwd=place, capture_output=True, text=True, timeout=PATIENCE
        )

    done = train(server.endpoint)
    assert done.returncode == 0, done.stderr
    found = parquet.read_table(run / "sentences.parquet")
    assert sorted(set(found["label.label"].to_pylist())) == NAMES
    assert len(found["re"]) == len(found["label.label"]) == 4
    commit = good["films"]["revision"]
    assert f"revision: {commit}" in (run / "config.yaml").read_text()
    (place / "hub" / "acme" / "reviews" / "new.txt").write_text("another commit\n")
    for endpoint in (server.endpoint, None):
        done = train(endpoint)
        assert done.returncode == 0, done.stderr
        assert "finished" in done.stdout


# In this process, without a server.


@pytest.mark.parametrize("path", ["imdb", "stanfordnlp/snli", "a-b/c.d_e"])
def test_ids(path):
    assert is_id(path)


@pytest.mark.parametrize("path", ["/a/b", "./a", "a/b/c", "~/a", "a b", "logs/*", "", ".a", "-", "a" * 97])
def test_paths_are_no_ids(path):
    assert not is_id(path)


def test_snli_is_pinned(tmp_path):
    assert hub.commit("stanfordnlp/snli", None, tmp_path) == KNOWN["stanfordnlp/snli"].revision
    assert hub.columns("stanfordnlp/snli") == ("premise", "hypothesis")
    with pytest.raises(UserError, match=r"copy SNLI 1\.0 .* data\.columns=\[sentence1,sentence2\]"):
        hub.load("stanfordnlp/snli", "0" * 40, None, None)
