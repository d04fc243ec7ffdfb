"""The probes of many runs: which are made, made again, or left as they are."""

import json
import shutil

import pytest
import yaml

from distvae import cli, train
from distvae.data import captions
from distvae.runs import probed, probing
from distvae.runs.probed import complete
from distvae.runs.results import load_results
from distvae.system.errors import UserError


@pytest.fixture
def runs(finished, language_model, tmp_path):
    """Copies of two finished runs of the same model, and of a language model; and a run without results."""
    found = [shutil.copytree(finished, tmp_path / name, symlinks=True) for name in ("one", "two", "begun")]
    (found[-1] / "results.json").unlink()
    return [*found, shutil.copytree(language_model, tmp_path / "lm", symlinks=True)]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(probed, "COUNTS", (10, None))


def test_finished_runs_with_a_latent_are_probed_once(runs, monkeypatch):
    assert complete(runs, ()) == runs[:2]
    assert [run.name for run in runs if (run / "probes.json").exists()] == ["one", "two"]
    found = [probing.load(run) for run in runs[:2]]
    for run, own in zip(runs, found, strict=False):
        assert probed.flaw(own, run, load_results(run)) is None
        assert own.columns.keys() == {*captions.Factors._fields}
        assert [probe.kind for probe in own.columns["number"].probes] == ["z", "words"]
        assert probed.of_model(own, run) == run.name
    # The second takes its bag of words from the first; what it makes of z is its own.
    assert found[0].columns["number"].probes[1] == found[1].columns["number"].probes[1]
    monkeypatch.setattr(probing, "encode", lambda *_: pytest.fail("is probed again"))
    assert complete(runs, ()) == []


def test_they_are_what_the_command_computes(runs, tmp_path):
    complete(runs, ())
    words = ["probe", str(runs[1]), "--quick", "--labels", "10,all", "--out", str(tmp_path / "p.json")]
    assert cli.main(words) == 0
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads((runs[1] / "probes.json").read_text())


def test_probes_of_a_newer_version_are_kept(runs):
    (runs[0] / "probes.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        complete(runs[:1], ())
    assert json.loads((runs[0] / "probes.json").read_text()) == {"format": 99}


@pytest.fixture(scope="module")
def unlabelled(tiny, cache, tmp_path_factory):
    """Trains runs on captions in files whose labels the training does not read; returns a function of their form."""
    folder = tmp_path_factory.mktemp("unlabelled")
    tree = yaml.safe_load(tiny.read_text())
    tree |= {"pretrain": {"max_epochs": 0}, "train": {"max_epochs": 2}}
    tree["kl"] = {"policy": "linear", "anneal_epochs": 1}
    found = {}

    def run(form):
        if form in found:
            return found[form]
        rows = [json.dumps({"text": " ".join(tokens), "number": made.number}) for tokens, made in captions.draw(240, 5)]
        data = folder / form
        data.mkdir()
        parts = {"all": rows} if form == "file" else {"train": rows[:160], "valid": rows[160:200], "test": rows[200:]}
        for name, lines in parts.items():
            (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        path = data / "all.jsonl" if form == "file" else data
        config = folder / f"{form}.yaml"
        config.write_text(yaml.safe_dump(tree | {"data": {"path": str(path), "cache": str(cache), "min_count": 1}}))
        found[form] = folder / "runs" / form
        assert train.main([str(config), f"run={found[form]}"]) == 0
        return found[form]

    return run


@pytest.mark.parametrize(
    "change",
    [
        {"models": {"folder": "0" * 64}},
        {"data": "0" * 16},
        {"seed": 2},
        {"split": "valid"},
        {"columns": {}},
        {"columns": "damaged"},
        {"format": 1, "columns": {}, "notes": ["who: left out, because train has 1 of its classes"]},
    ],
)
def test_probes_that_do_not_count_are_made_again(unlabelled, tmp_path, change):
    run = shutil.copytree(unlabelled("folder"), tmp_path / "folder", symlinks=True)
    complete([run], ("number",))
    path = run / "probes.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | change))
    assert complete([run], ("number",)) == [run]
    assert path.read_text() == whole


def test_labels_that_the_training_did_not_keep(unlabelled, tmp_path, capsys):
    run = shutil.copytree(unlabelled("folder"), tmp_path / "run", symlinks=True)
    with pytest.raises(UserError, match="has no labels to probe for; name a column by --label COLUMN"):
        complete([run], ())
    assert complete([run], ("number",)) == [run]
    found = probing.load(run)
    assert (found.columns["number"].train, found.columns["number"].test) == (160, 40)
    assert found.data == load_results(run).data
    assert complete([run], ("number",)) == []
    # So does the command that probes one run.
    assert cli.main(["probe", str(run), "data.label=number", "--quick", "--labels", "10,all"]) == 0
    assert complete([run], ("number",)) == []
    capsys.readouterr()
    assert cli.main(["report", str(run), "--out", str(tmp_path), "--probe", "--label", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
    assert cli.main(["report", str(run), "--out", str(tmp_path), "--label", "number"]) == 2
    assert capsys.readouterr().err == "distvae: --label: names columns for --probe; give both\n"


def test_labels_do_not_cut_the_splits_of_a_file_again(unlabelled, tmp_path):
    run = shutil.copytree(unlabelled("file"), tmp_path / "run", symlinks=True)
    assert complete([run], ("number",)) == [run]
    found = probing.load(run)
    assert found.data == load_results(run).data
    # 240 captions, of which the training has cut 24 each for valid and test.
    assert (found.columns["number"].train, found.columns["number"].test) == (192, 24)
    assert cli.main(["probe", str(run), "data.label=number", "--quick", "--labels", "10,all"]) == 0
    assert probing.load(run).columns == found.columns


def test_sentences_that_have_changed_are_refused(unlabelled, tmp_path):
    run = shutil.copytree(unlabelled("file"), tmp_path / "run", symlinks=True)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"data": "0" * 16}))
    with pytest.raises(UserError, match="its sentences are not those that it was trained and tested on"):
        complete([run], ("number",))
    assert not (run / "probes.json").exists()


def test_other_text_is_not_the_runs(unlabelled, tmp_path):
    run = shutil.copytree(unlabelled("folder"), tmp_path / "run", symlinks=True)
    text = unlabelled("folder").parents[1] / "folder"
    assert cli.main(["probe", str(run), str(text), "data.label=number", "--quick", "--labels", "10"]) == 0
    assert probed.flaw(probing.load(run), run, load_results(run)) == "are of other sentences"


def test_captions_have_labels_of_their_own(runs):
    with pytest.raises(UserError, match="--label who: .*not for data.path=captions"):
        complete(runs, ("who",))


def test_a_library_that_is_missing_is_named(runs, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs scikit-learn"):
        complete(runs, ())
