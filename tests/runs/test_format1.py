"""Use a run of format 1 with its checkpoint and exports: ``tests/fixtures/format1/run``.

It was trained before files had a format number.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from distvae import cli
from distvae.config.load import load_config
from distvae.runs import checkpoints
from distvae.runs.records import read_metrics
from distvae.runs.results import load_results, results_from_dict
from distvae.system.files import Manifest, read_as
from distvae.system.formats import FORMAT, FormatError
from distvae.train import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format1" / "run"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)  # its data.cache is a relative path
    return shutil.copytree(FIXTURE, tmp_path / "run", symlinks=True)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


def test_it_has_no_format_numbers():
    files = [path for path in FIXTURE.rglob("*") if path.suffix in (".json", ".yaml")]
    assert len(files) > 10
    assert not any("format" in yaml.safe_load(path.read_text(encoding="utf-8")) for path in files)


def test_it_loads():
    found = checkpoints.load_checkpoint(checkpoints.newest_checkpoint(FIXTURE))
    assert (found.state.step, found.world_size) == (9, 1)
    assert all((found.best_weights, found.optimizer, found.ranks))
    export = checkpoints.load_export(FIXTURE)
    assert export.config == load_config(FIXTURE / "config.yaml", whole=True)
    export.model()
    assert load_results(FIXTURE).scores.sentences == 8
    assert [row.epoch for row in read_metrics(FIXTURE)] == [1, 1, 2]


def test_it_compares_and_evaluates(run, capsys):
    assert cli.main(["compare", str(run)]) == 0
    assert f"{load_results(run).scores.nll.mean:.2f}" in capsys.readouterr().out
    assert cli.main(["evaluate", str(run)]) == 0
    assert f"{load_results(run).scores.nll.mean:.2f}" in capsys.readouterr().out


def test_it_resumes_and_is_written_with_format_numbers(run):
    assert main([str(run / "config.yaml"), f"run={run}", "train.max_epochs=3"]) == 0
    starts = [(row.stage, row.start) for row in read_metrics(run)]
    assert starts == [("pretrain", 1), ("train", 1), ("train", 1), ("train", 2)]
    folder = checkpoints.newest_checkpoint(run)
    for path in (run / "results.json", run / "best" / "manifest.json", folder / "manifest.json", folder / "state.json"):
        assert json.loads(path.read_text())["format"] == FORMAT
    for path in (run / "config.yaml", run / "best" / "config.yaml", folder / "config.yaml"):
        assert yaml.safe_load(path.read_text())["format"] == FORMAT


@pytest.mark.parametrize(
    "name", ["config.yaml", "results.json", "checkpoints/latest/manifest.json", "best/manifest.json"]
)
def test_a_newer_file_is_refused_and_nothing_overwritten(run, capsys, name):
    path = run / name
    if path.suffix == ".yaml":
        path.write_text(f"format: {FORMAT + 1}\nnew: 1\n", encoding="utf-8")
    else:
        change(path, format=FORMAT + 1)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    if name == "best/manifest.json":
        code = cli.main(["evaluate", str(run)])
    else:
        # A finished run whose results cannot be read would score its weights again.
        epochs = 2 if name == "results.json" else 3
        code = main([str(FIXTURE / "config.yaml"), f"run={run}", f"train.max_epochs={epochs}"])
    assert code == 2
    assert (
        f"has format {FORMAT + 1}, and this version of distvae reads formats up to {FORMAT}" in capsys.readouterr().err
    )
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "status.json"}
    assert after == {p: content for p, content in before.items() if p.name != "status.json"}


def test_a_newer_checkpoint_is_not_passed_over_for_an_older_one(run):
    older = checkpoints.newest_checkpoint(run)
    newer = shutil.copytree(older, older.with_name("start-0001-step-000000010-epoch-0003"))
    change(newer / "manifest.json", format=FORMAT + 1)
    with pytest.raises(FormatError):
        checkpoints.newest_checkpoint(run)


def test_a_key_of_a_later_version_takes_its_default():
    @dataclasses.dataclass(frozen=True)
    class Later(checkpoints.RunState):
        added: int = 7

    state = read_as(Later, checkpoints.newest_checkpoint(FIXTURE) / "state.json", "the state of a run")
    assert (state.step, state.added) == (9, 7)
    assert read_as(Manifest, FIXTURE / "best" / "manifest.json", "a manifest").files


def test_results_lack_what_their_version_did_not_write():
    path = FIXTURE / "results.json"
    content = json.loads(path.read_text())
    for name in ("start", "unknown", "latent"):
        del content[name]
    del content["scores"]["bound_holds"], content["scores"]["nll_excess"]
    found = results_from_dict(content, path)
    assert (found.start, found.latent, found.scores.nll_excess) == (None, None, None)
    content["scores"]["bound_holds"] = False
    with pytest.raises(ValueError, match="bound_holds contradicts nll_excess"):
        results_from_dict(content, path)
