"""A sweep's report: pages, the command, and TensorBoard's table of trials."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from distvae import cli
from distvae.runs.records import read_metrics
from distvae.sweeps.progress import SweepProgress, Trial, load_trials
from distvae.sweeps.ranking import kept, outcome
from distvae.sweeps.report import write_hparams, write_report
from distvae.sweeps.summary import summary
from distvae.sweeps.timing import by_the_trials
from distvae.system.errors import UserError, printable
from distvae.train import train
from tests.sweep_folders import (
    ORDER,
    large_sweep,
    pbt_sweep,
    scores,
    small_sweep,
    sweep_of,
    write_run,
    write_sweep,
)
from tests.sweeps.pages import cells, page


def test_the_page_has_the_same_table(small):
    rows = cells((small / "sweep.md").read_text(encoding="utf-8"))
    assert page(small).rows == [list(row.values()) for row in rows]


def test_a_trial_that_tells_nothing_ranks_behind_and_the_report_says_why(tmp_path):
    """By its KL alone it would be the best; its λ of 2 is met to the tenth."""
    asked = sweep_of(tmp_path / "run")
    kinds = {0: (18.0, 1.91, 0.0, 0), 1: (19.0, 2.1, 1.9, 3), 2: (18.5, 2.0, 0.9, 4)}
    for number, (nll, kl, mi, units) in kinds.items():
        write_run(asked.folder / "trials" / f"{number:04d}", scores(nll, kl, mi, units))
    write_sweep(asked, [Trial(n, {"kl.target_rate": 2, "kl.multiplier": 0.1}, "finished") for n in kinds])
    account = write_report(asked.folder)
    why = "Trial 0 has a lower NLL (18.00), but its latent is dead (MI 0.00): it ranks behind."
    assert why in summary(account)
    rows = cells((asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [(row["trial"], row["KL is right"], row["latent"]) for row in rows] == [
        ("1", "yes", "alive"), ("2", "yes", "hollow"), ("0", "yes", "dead"),
    ]  # fmt: skip
    assert why in page(asked.folder).words
    assert "Latents: 1 alive, 1 hollow, 1 dead." in summary(account)
    trial = load_trials(asked.folder)[0]
    write_hparams(asked.folder, asked, trial)
    (violation,) = events(asked.folder / "trials" / "0000").Scalars("final/violation")
    assert violation.value == 1.0


def test_the_page_needs_nothing_beside_itself(small):
    assert page(small).loads == ["data:,"]


def test_a_folder_that_was_moved_tells_the_same(small, tmp_path):
    before = (small / "sweep.md").read_text(encoding="utf-8")
    moved = shutil.copytree(small, tmp_path / "elsewhere" / small.name)
    (moved / "sweep.md").unlink()
    write_report(moved)
    assert (moved / "sweep.md").read_text(encoding="utf-8") == before
    assert not [path for path in moved.iterdir() if path.name.startswith(".")]


def test_the_lineage_of_population_based_training(tmp_path):
    asked = pbt_sweep(tmp_path / "pbt")
    account = write_report(asked.folder)
    text = (asked.folder / "sweep.md").read_text(encoding="utf-8")
    assert cells(text, "run") == [{"run": "0001.1", "continues": "0000", "at step": "40", "with": "λ = 4.8"}]
    assert [row["trial"] for row in cells(text)] == ["1.1", "0"]
    assert [row.epoch for row in account.best.rows] == list(range(1, 9))
    curve = next(trace for trace in page(asked.folder).figures[-2]["data"] if trace["name"] == "best, trial 1")
    assert curve["x"] == list(range(1, 9))
    # Of the time each epoch counts once: four of 0001, four of 0001.1, eight of 0000.
    assert next(p.seconds for p in by_the_trials(account) if p.what == "training steps") == 16 * 2.0
    assert "0001.1" in page(asked.folder).words


def test_what_training_records_is_what_is_read(cache, tmp_path):
    asked = sweep_of(
        tmp_path / "run",
        space={"kl.target_rate": {"grid": [0.3]}},
        num_samples=1,
        set={"data.cache": str(cache), "train.max_epochs": 4, "pretrain.max_epochs": 1, "optimizer.learning_rate": 0.1},
    )
    run = asked.folder / "trials" / "0000"
    results = train(asked.config_of({"kl.target_rate": 0.3}, run))
    trial = Trial(0, {"kl.target_rate": 0.3}, "finished", seconds=60.0)
    write_sweep(asked, [trial], SweepProgress("finished", slots=1, trial_seconds=60.0, place_seconds=60.0))
    account = write_report(asked.folder)
    (entry,) = account.entries
    rows = read_metrics(run)
    assert entry.epochs == 4
    assert entry.outcome == outcome(asked.config_of(trial.values, run), rows)
    assert entry.outcome.nll == kept(rows).valid.nll.mean
    assert len(entry.outcome.scores.kl_per_dimension) == len(results.scores.kl_per_dimension)
    spent = {part.what: part.seconds for part in by_the_trials(account)}
    for what in ("pretraining steps", "training steps", "validation, including the NLL"):
        assert 0 < spent[what] < 30
    write_hparams(asked.folder, asked, trial)
    assert "neg_elbo/valid" in events(run).Tags()["scalars"]
    assert events(run).Scalars("final/nll")[0].value == pytest.approx(entry.outcome.nll)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sweep.yaml", "base: ["),
        ("base.yaml", "modle: {}"),
        ("sweep.json", "[]"),
        ("trials.json", "{}"),
        ("trials/0001/metrics.jsonl", "no JSON\n"),
        ("trials/0001/metrics.jsonl", "[]\n"),
        ("trials/0001/metrics.jsonl", '{"stage": "train", "start": 1, "step": 1}\n'),
        ("trials/0001/metrics.jsonl", "{}\n"),
        ("pretrained/0123456789ab/metrics.jsonl", "3\n"),
        ("finalists/0005.json", "[]"),
        ("finalists/0005.json", '{"test": {}}'),
        ("finalists/0005.json", '{"test": 3}'),
        ("finalists/0005.json", "{"),
    ],
)
def test_what_is_damaged_is_one_line_that_names_it_and_the_old_report_stays(small, tmp_path, name, text):
    folder = shutil.copytree(small, tmp_path / "damaged")
    (folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        write_report(folder)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / "sweep.html").read_bytes() == (small / "sweep.html").read_bytes()


def test_what_a_sweep_tells_is_shown_as_text(tmp_path, capsys):
    hostile = "\x1b[31m ![x](http://evil/x) [y](javascript:z) <img src=x>\u202e"
    asked = small_sweep(tmp_path / "small")
    path = asked.folder / "trials.json"
    trials = json.loads(path.read_text(encoding="utf-8"))
    trials["trials"][2]["reason"] = hostile
    path.write_text(json.dumps(trials), encoding="utf-8")
    capsys.readouterr()
    for more in ([], ["--json"]):
        assert cli.main(["sweep-report", str(asked.folder), *more]) == 0
        said = capsys.readouterr().out
        assert "[y](javascript:z)" in said
        assert not set("\x1b\u202e") & set(said)
    text = (asked.folder / "sweep.md").read_text(encoding="utf-8")
    assert "javascript:z" in text
    assert not re.search(r"\x1b|\u202e|\]\(|<img|://", text)
    text = page(asked.folder).words
    assert printable(hostile) in text


def test_without_plotly_a_line_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    for name in [name for name in sys.modules if name.startswith("plotly.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"needs plotly.*pip install -e '\.\[sweep\]'"):
        write_report(small)


def test_the_command_writes_the_report_and_prints_the_table(small, tmp_path, capsys):
    folder = shutil.copytree(small, tmp_path / "copy", ignore=shutil.ignore_patterns("sweep.html", "sweep.md"))
    assert cli.main(["sweep-report", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    ranked = [line.split() for line in lines if re.match(r" *[1-5]  ", line)]
    assert [row[1] for row in ranked] == [str(number) for number in ORDER]
    assert "trial 2 failed: kl.multiplier = <b>0.5</b> | is no good" in lines
    assert lines[-1] == str(folder / "sweep.html")
    assert (folder / "sweep.html").is_file()
    assert (folder / "sweep.md").is_file()


def test_the_command_prints_json(small, tmp_path, capsys):
    folder = shutil.copytree(small, tmp_path / "copy")
    assert cli.main(["sweep-report", str(folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [trial["number"] for trial in content["trials"]] == [*ORDER, 2]
    best = content["trials"][0]
    assert (best["rank"], best["within_tolerance"], best["outcome"]["nll"]) == (1, True, 17.9)
    assert best["finalist"]["test"]["scores"]["importance_samples"] == 500
    assert best["runs"] == ["trials/0005"]
    assert content["trials"][-1]["reason"] == "kl.multiplier = <b>0.5</b> | is no good"
    assert content["progress"]["nodes"] == ["n1", "n2"]


@pytest.mark.parametrize("there", [True, False])
def test_the_command_refuses_a_folder_that_is_no_sweeps(tmp_path, capsys, there):
    folder = tmp_path if there else tmp_path / "none"
    assert cli.main(["sweep-report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said == f"distvae: {folder}: is not a sweep folder: it has no sweep.yaml\n"


@pytest.fixture(autouse=True)
def in_order(monkeypatch):
    """Event files are read in the order of their names, which end, within a second, in how many there were before."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return found


def session(run: Path) -> tuple[dict[str, object], int]:
    """What a run's line in TensorBoard's table of trials tells: values, and how it ended."""
    content = events(run).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    end = HParamsPluginData.FromString(content["_hparams_/session_end_info"]).session_end_info
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    return values, end.status


def test_a_trial_has_one_line_with_its_values_and_scores_beside_its_curves(tmp_path):
    asked = small_sweep(tmp_path / "run")
    for trial in load_trials(asked.folder):
        write_hparams(asked.folder, asked, trial)
        write_hparams(asked.folder, asked, trial)
    run = asked.folder / "trials" / "0005"
    assert len(list(run.glob("tensorboard/*.hparams"))) == 1
    assert session(run) == ({"kl.target_rate": 4.0, "kl.multiplier": 0.3}, Status.Value("STATUS_SUCCESS"))
    found = {tag: events(run).Scalars(f"final/{tag}")[0].value for tag in
             ("nll", "kl", "neg_elbo", "mutual_information", "active_units")}  # fmt: skip
    assert found == pytest.approx(
        {"nll": 17.9, "kl": 4.1, "neg_elbo": 18.825, "mutual_information": 3.7, "active_units": 4}
    )
    assert len(events(run).Scalars("kl/valid")) == 8


def test_a_trial_that_recorded_nothing_has_a_line_too(tmp_path):
    asked = small_sweep(tmp_path / "run")
    trial = load_trials(asked.folder)[2]
    shutil.rmtree(asked.folder / "trials" / "0002")
    write_hparams(asked.folder, asked, trial)
    run = asked.folder / "trials" / "0002"
    assert session(run) == ({"kl.target_rate": 2.0, "kl.multiplier": 0.5}, Status.Value("STATUS_FAILURE"))
    assert events(run).Tags()["scalars"] == []
    write_report(asked.folder)


def test_the_line_of_an_earlier_generation_gives_way(tmp_path):
    asked = pbt_sweep(tmp_path / "pbt")
    trial = load_trials(asked.folder)[1]
    later = asked.folder / "trials" / "0001.1"
    away = later.rename(tmp_path / "away")
    write_hparams(asked.folder, asked, trial)
    assert len(list(asked.folder.glob("trials/0001*/tensorboard/*.hparams"))) == 1
    away.rename(later)
    write_hparams(asked.folder, asked, trial)
    (path,) = asked.folder.glob("trials/0001*/tensorboard/*.hparams")
    assert path.parent.parent == later


def test_every_line_names_all_keys_and_metrics(tmp_path):
    """TensorBoard takes its columns from whichever line it reads first."""
    asked = large_sweep(tmp_path / "large")
    for trial in load_trials(asked.folder)[:5]:
        write_hparams(asked.folder, asked, trial)
        content = events(asked.folder / "trials" / f"{trial.number:04d}").PluginTagToContent("hparams")
        experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
        assert [info.name for info in experiment.hparam_infos] == list(asked.config.space)
        assert len(experiment.metric_infos) == 6
    values, _ = session(asked.folder / "trials" / "0000")
    assert values["kl.policy"] in ("linear", "soft_free_bits")


def test_the_page_is_installed_with_the_code():
    setup = (Path(cli.__file__).parents[1] / "setup.cfg").read_text()
    assert "distvae.reports = *.html" in setup
