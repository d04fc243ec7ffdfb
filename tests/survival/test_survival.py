import pytest

from distvae.config.load import load_config
from tests.conftest import ROOT
from tests.survival import __main__ as survival
from tests.survival.__main__ import RECIPES, SETTINGS, Cell, CellScores, line, main, summary
from tests.survival.corpora import SPLITS, generated


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return generated(tmp_path_factory.mktemp("corpora"))


@pytest.mark.parametrize(("name", "words", "lengths"), [("short", (1500, 2010), (4, 6)), ("long", (60, 60), (20, 34))])
def test_the_generated_corpora_are_of_their_sizes(corpora, name, words, lengths):
    found = {}
    for split, size in SPLITS.items():
        with open(f"{corpora[name]}/{split}.txt", encoding="utf-8") as file:
            found[split] = file.read().splitlines()
        assert len(found[split]) == size
    tokens = [sentence.split() for sentence in found["train"]]
    assert words[0] <= len({word for sentence in tokens for word in sentence}) <= words[1]
    assert (min(map(len, tokens)), max(map(len, tokens))) == lengths
    assert found["train"][: SPLITS["valid"]] != found["valid"]


def test_the_corpora_are_always_the_same(corpora, tmp_path):
    again = generated(tmp_path)
    assert again.keys() == corpora.keys()
    for name in ("short", "long"):
        for split in SPLITS:
            one, other = (f"{folder[name]}/{split}.txt" for folder in (corpora, again))
            with open(one, encoding="utf-8") as a, open(other, encoding="utf-8") as b:
                assert a.read() == b.read()


@pytest.mark.parametrize(
    ("kl", "information", "active_units", "alive"),
    [
        (4.0, 3.5, 3, True),
        (4.59, 3.22, 3, True),
        (3.41, 2.4, 3, True),
        (4.61, 4.0, 9, False),
        (3.39, 3.0, 9, False),
        (4.0, 2.79, 9, False),
        (4.0, 3.5, 2, False),
    ],
)
def test_a_cell_is_alive(kl, information, active_units, alive):
    assert CellScores(kl, information, 30.0, active_units).alive == alive


def test_the_summary_compares_each_cell_with_its_own_twin():
    outcomes = {
        Cell("own", "captions", "sgd-1", 0): CellScores(4.0, 3.5, 30.5, 9),
        Cell("own", "captions", "sgd-1", 1): CellScores(4.0, 0.1, 29.0, 9),
        Cell("paper", "captions", "sgd-1", 0): CellScores(0.1, 0.0, 31.0, 0),
        Cell("twin", "captions", "sgd-1", 0): CellScores(0.0, 0.0, 30.0, 0),
        Cell("twin", "captions", "sgd-1", 1): CellScores(0.0, 0.0, 29.5, 0),
    }
    assert summary(outcomes) == [
        "own: 1 of 2 alive; NLL beside the twins +0.00 nats (-0.50 to +0.50)",
        "paper: 0 of 1 alive; NLL beside the twins +1.00 nats (+1.00 to +1.00)",
        "twin: 0 of 2 alive",
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_config_of_as_many_epochs(recipe):
    keys = SETTINGS | RECIPES[recipe](18)
    config = load_config(str(ROOT / "configs" / "own.yaml"), [f"{key}={value}" for key, value in keys.items()])
    assert config.pretrain.max_epochs + config.train.max_epochs == 18
    assert config.kl.rate == (None if recipe == "twin" else survival.RATE)


def test_the_grid_trains_each_cell_once(tmp_path, capsys, monkeypatch):
    trained = []

    def train(cell, data, epochs, run):
        trained.append((cell, data, epochs, run))
        return CellScores(4.0, 3.5, 30.0, 9)

    monkeypatch.setattr(survival, "train", train)
    asked = ["--folder", str(tmp_path), "--recipes", "own", "--optimizers", "sgd-1", "--seeds", "3", "--epochs", "2"]
    assert main([str(tmp_path / "mine.txt"), *asked]) == 0
    assert [(cell.corpus, cell.seed, epochs) for cell, _, epochs, _ in trained] == [
        ("captions", 3, 2), ("short", 3, 2), ("long", 3, 2), ("mine.txt", 3, 2),
    ]  # fmt: skip
    assert trained[-1][1] == str(tmp_path / "mine.txt")
    assert len({run for *_, run in trained}) == 4
    said = capsys.readouterr().out
    assert line(trained[0][0], CellScores(4.0, 3.5, 30.0, 9)) in said
    assert said.endswith("own: 4 of 4 alive\n")


@pytest.mark.long
def test_a_cell_trains_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "data.train_size", 200)
    cell = Cell("own", "captions", "sgd-1", 0)
    found = survival.train(cell, "captions", 1, tmp_path / "cell")
    assert 0 < found.nll < 100
    before = (tmp_path / "cell" / "results.json").stat().st_mtime_ns
    assert survival.train(cell, "captions", 1, tmp_path / "cell") == found
    assert (tmp_path / "cell" / "results.json").stat().st_mtime_ns == before
