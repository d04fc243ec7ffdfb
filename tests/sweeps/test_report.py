import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from distvae import cli
from distvae.runs.records import read_metrics
from distvae.sweeps.account import gather
from distvae.sweeps.progress import SweepProgress, Trial, load_progress, load_trials, save_progress
from distvae.sweeps.ranking import front, kept, outcome
from distvae.sweeps.report import write_hparams, write_report
from distvae.sweeps.summary import by_elbo, endings, summary
from distvae.sweeps.timing import by_the_clock, by_the_trials, utilisation
from distvae.system.errors import UserError, printable
from distvae.system.markdown import escaped
from distvae.train import train
from tests.sweep_folders import (
    ORDER,
    SCORES,
    large_sweep,
    pbt_sweep,
    scores,
    small_sweep,
    sweep_of,
    write_run,
    write_sweep,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A finished sweep's folder, with its report. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("sweeps") / "small"
    small_sweep(folder)
    write_report(folder)
    return folder


def cells(text: str, heading: str = "rank") -> list[dict[str, str]]:
    """The rows of the Markdown table that begins with this heading."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


class Page(HTMLParser):
    """What a browser would load of a page, its table of trials, its pictures and its words."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.rows, self.figures, self.words = [], [], [], ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [found[name] for name in ("src", "href", "srcset", "action", "data") if name in found]
        if tag == "table":
            self._trials = found.get("id") == "trials"
        if tag == "tr" and "data-trial" in found:
            self.rows.append([])
        if tag not in ("meta", "link", "wbr"):
            self._inside.append("figure" if found.get("class") == "figure" else tag)

    def handle_endtag(self, tag):
        self._inside.pop()

    def handle_data(self, data):
        last = self._inside[-1] if self._inside else ""
        if last == "figure":
            self.figures.append(json.loads(data))
        elif last == "td" and self._trials:
            self.rows[-1].append(data)
        if last == "style":
            assert "url(" not in data
            assert "@import" not in data
        elif last != "script":
            self.words += data


def page(folder: Path) -> Page:
    return Page((folder / "sweep.html").read_text(encoding="utf-8"))


# -- The table ---------------------------------------------------------------------------------------------------------


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


def test_the_page_has_the_same_table(small):
    rows = cells((small / "sweep.md").read_text(encoding="utf-8"))
    assert page(small).rows == [list(row.values()) for row in rows]


def test_a_metric_that_is_not_always_shown_is_when_it_judges(tmp_path):
    asked = sweep_of(tmp_path / "run", objective={"metric": "ppl", "kl_tolerance": None})
    for number, nll in enumerate((20, 19)):
        write_run(asked.folder / "trials" / f"{number:04d}", scores(nll, 1, 1, 2))
    write_sweep(asked, [Trial(n, {"kl.target_rate": 2}, "finished") for n in (0, 1)])
    rows = cells(write_report(asked.folder) and (asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [(row["trial"], row["PPL"]) for row in rows] == [("1", "6.69"), ("0", "7.39")]
    assert "KL is right" not in rows[0]
    assert "within" not in summary(gather(asked.folder))


# -- Words -------------------------------------------------------------------------------------------------------------


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


def test_trials_with_the_same_reason_are_told_together(tmp_path):
    large_sweep(tmp_path / "large")
    assert endings(gather(tmp_path / "large")) == [
        "trials 0, 7, 14, 21 stopped: stop.hours = 1 have passed",
        "trial 4 failed: the loss or gradient of step 12 is not finite",
        "trials 5, 24 had not ended when this report was written",
    ]


def test_where_the_time_went(small):
    account = gather(small)
    clock = {part.what: (part.seconds, part.share) for part in by_the_clock(account)}
    assert clock == {
        "pretraining that trials share": (20.0, 0.1), "trials": (100.0, 0.5), "finalists": (40.0, 0.2),
        "startup and everything else": (40.0, 0.2),
    }  # fmt: skip
    trials = {part.what: part.seconds for part in by_the_trials(account)}
    assert trials == {
        "training steps": 80.0, "validation, including the NLL": 40.0, "training blocked by a checkpoint": 10.0,
        "startup, test sentences and everything else": 25.0, "free slots": 45.0,
    }  # fmt: skip
    assert utilisation(account) == 155 / 200
    assert "Trials held 78% of the time of all slots" in (small / "sweep.md").read_text(encoding="utf-8")


def test_the_places_of_every_start_count_and_not_only_those_of_the_last(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "grown")
    save_progress(folder, replace(load_progress(folder), slots=8))
    assert utilisation(gather(folder)) == 155 / 200
    assert next(p.seconds for p in by_the_trials(gather(folder)) if p.what == "free slots") == 45.0


def test_time_before_records_told_that_of_validation_is_not_lost(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "old")
    for path in folder.glob("trials/*/metrics.jsonl"):
        path.write_text(re.sub(r'"valid_seconds": [^,]*, ', "", path.read_text()))
    trials = {part.what: part.seconds for part in by_the_trials(gather(folder))}
    assert trials["startup, test sentences and everything else"] == 65.0
    assert "validation, including the NLL" not in trials


def test_a_sweep_none_of_whose_trials_has_its_kl_right_says_so(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_run(asked.folder / "trials" / "0000", scores(20, 3, 2, 2))
    write_sweep(asked, [Trial(0, {"kl.target_rate": 2, "kl.multiplier": 0.1}, "finished")])
    text = summary(gather(asked.folder))
    assert "No trial meets the constraints; the nearest is trial 0" in text
    assert "Of the 1 judged trial 0 (0%) have" in text


# -- The page ----------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_beside_itself(small):
    assert page(small).loads == ["data:,"]


def test_every_picture_has_its_trials(small):
    against, parallel, curves, trade_off = page(small).figures
    nll = [y for trace in against["data"] if trace["yaxis"] == "y" for y in trace["y"]]
    assert sorted(nll) == sorted(found[2] for found in SCORES.values())
    assert against["layout"]["xaxis2"]["type"] == "log"
    assert [d["label"] for d in parallel["data"][0]["dimensions"]] == ["λ", "χ", "NLL", "KL", "AU", "MI"]
    assert parallel["data"][0]["dimensions"][2]["values"] == [SCORES[number][2] for number in ORDER]
    assert len(curves["data"]) == 2 * len(SCORES)
    assert all(trace["x"] == list(range(1, 9)) for trace in curves["data"])
    first = [(trace["x"], trace["y"]) for trace in trade_off["data"] if trace.get("xaxis") == "x" and "text" in trace]
    points = [point for xs, ys in first for point in zip(xs, ys, strict=True)]
    assert sorted(points) == sorted((nll, nll + mi / 4) for _, _, nll, _, mi, _ in SCORES.values())


def test_the_front_of_two_objectives_is_marked(tmp_path):
    asked = large_sweep(tmp_path / "large")
    account = write_report(asked.folder)
    assert account.front == front(asked.config.objective, {entry.number: entry.outcome for entry in account.judged})
    assert "no other beats trial" in summary(account)
    rows = cells((asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [int(row["trial"]) for row in rows if row["front"] == "yes"] == account.front
    (marked,) = (t for t in page(asked.folder).figures[-1]["data"] if t.get("name") == "front" and t["xaxis"] == "x")
    assert marked["x"] == [entry.outcome.nll for entry in account.entries if entry.number in account.front]


# -- All kinds of folders ----------------------------------------------------------------------------------------------


def test_a_folder_that_was_moved_tells_the_same(small, tmp_path):
    before = (small / "sweep.md").read_text(encoding="utf-8")
    moved = shutil.copytree(small, tmp_path / "elsewhere" / small.name)
    (moved / "sweep.md").unlink()
    write_report(moved)
    assert (moved / "sweep.md").read_text(encoding="utf-8") == before
    assert not [path for path in moved.iterdir() if path.name.startswith(".")]


def test_a_sweep_that_has_not_begun(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_sweep(asked, [])
    account = write_report(asked.folder)
    assert account.best is None
    assert "of which 0 have begun" in summary(account)
    assert "No trial can be judged yet." in summary(account)
    assert page(asked.folder).figures == []
    assert "No trial has started." in (asked.folder / "sweep.md").read_text(encoding="utf-8")


def test_a_sweep_that_runs(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_run(asked.folder / "trials" / "0000", scores(20, 2, 2, 2), epochs=1)
    write_run(asked.folder / "trials" / "0001", scores(20, 2, 2, 2), epochs=0, pretrain=2)
    (asked.folder / "trials" / "0002").mkdir()
    values = {"kl.target_rate": 2, "kl.multiplier": 0.1}
    states = ["running", "running", "running", "waiting"]
    write_sweep(asked, [Trial(n, values, state) for n, state in enumerate(states)], SweepProgress(slots=3))
    account = write_report(asked.folder)
    assert account.judged == []
    assert "The sweep is running: 6 trials" in summary(account)
    rows = cells((asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [row["NLL, K = 50"] for row in rows] == ["20.00 ± 0.15", "–", "–", "–"]
    assert [row["rank"] for row in rows] == ["–"] * 4
    assert len(page(asked.folder).figures) == 3  # no parallel coordinates of a single trial


def test_a_sweep_all_of_whose_trials_failed(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_run(asked.folder / "trials" / "0000", scores(20, 2, 2, 2), epochs=2)
    values = {"kl.target_rate": 2, "kl.multiplier": 0.1}
    write_sweep(asked, [Trial(n, values, "failed", "no luck") for n in range(2)], SweepProgress("failed"))
    account = write_report(asked.folder)
    assert account.best is None
    assert endings(account) == ["trials 0, 1 failed: no luck"]
    assert len(page(asked.folder).figures) == 1  # the curves of what was trained


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


# -- What is damaged ---------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sweep.json", r'"seconds": 200\.0', '"seconds": NaN'),
        ("sweep.json", r'"seconds": 200\.0', '"seconds": 1e300'),
        ("trials.json", r'"seconds": 30\.0', '"seconds": -1'),
        ("trials.json", r'"number": 1', '"number": 0'),
        ("trials.json", r"kl\.target_rate", "kl.threshold"),
        ("trials/0005/metrics.jsonl", r'("nll": {"mean": )', r"\g<1>1"),
        ("trials/0005/metrics.jsonl", r'"verdict": "wait"', '"verdict": "best"'),
        ("trials/0005/metrics.jsonl", r"(?s).*", ""),
        ("finalists/0005.json", r'("nll": {\s+"mean": )', r"\g<1>1"),
        ("finalists/0005.json", r'"split": "valid"', '"split": "test"'),
    ],
)
def test_what_no_sweep_writes_is_one_line_that_names_the_file(small, tmp_path, name, old, new):
    folder = shutil.copytree(small, tmp_path / "damaged")
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(re.sub(old, new, text, count=1), encoding="utf-8")
    assert (folder / name).read_text(encoding="utf-8") != text
    with pytest.raises(UserError, match=re.escape(str(folder / name))):
        write_report(folder)


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


# -- The command -------------------------------------------------------------------------------------------------------


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


# -- TensorBoard -------------------------------------------------------------------------------------------------------


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
