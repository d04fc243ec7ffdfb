"""What each library has of a run, read back with its own reader, after two crashes and resumes."""

import contextlib
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from distvae.runs.trackers import libraries
from distvae.runs.trackers.libraries import LIBRARIES, require_packages
from distvae.system.errors import UserError
from distvae.train import main
from tests.conftest import PATIENCE, ROOT, TRAIN, needs
from tests.runs.epochs import VALID, record, rows, scalars


@dataclass
class Shown:
    """A run in a library."""

    name: str
    group: str | None
    settings: dict
    points: list[tuple[int, dict]] = field(default_factory=list)  # step and scalars
    texts: dict[int, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    scores: dict = field(default_factory=dict)
    ending: str | None = None


def of_wandb(folder: Path) -> list[Shown]:
    """Return the runs, each with the points of its newest offline file, which has those of all attempts."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Shown] = {}
    newest: dict[str, Path] = {}
    for path in sorted(folder.glob("**/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for part in _wandb_records(path.read_bytes()):
            entry = wandb_internal_pb2.Record.FromString(part)
            kind = entry.WhichOneof("record_type")
            if kind == "run":
                shown = found.setdefault(entry.run.run_id, Shown("", None, {}))
                if path != newest.setdefault(entry.run.run_id, path):  # a run record may come again within a file
                    newest[entry.run.run_id], shown.points = path, []
                shown.name, shown.group = entry.run.display_name, entry.run.run_group or None
            elif kind == "config":
                shown.settings |= {item.key: json.loads(item.value_json) for item in entry.config.update}
            elif kind == "history":
                items = {"/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
                step = items.pop("_step")
                shown.points.append((step, items))
                if "prior samples/path" in items:
                    table = path.parent / "files" / items["prior samples/path"]
                    shown.texts[step] = [text for (text,) in json.loads(table.read_text(encoding="utf-8"))["data"]]
            elif kind == "alert":
                shown.warnings.append(entry.alert.text)
            elif kind == "summary":
                shown.scores |= {item.key: json.loads(item.value_json) for item in entry.summary.update if item.key}
            elif kind == "exit":
                shown.ending = {0: "finished", 255: "interrupted"}[entry.exit.exit_code]
    return list(found.values())


def _wandb_records(content: bytes):
    """Yield the records of a LevelDB log after its 7 bytes of header: blocks of 32 KiB, records in parts."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind == 0 or 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def of_mlflow(folder: Path) -> list[Shown]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'a project'")
    found = []
    for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]):
        tags, params = run.data.tags, run.data.params
        steps: dict[int, dict] = {}
        for key in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, key)
            assert len(points) == len({point.step for point in points}), key
            for point in points:
                steps.setdefault(point.step, {})[key] = point.value
        shown = Shown(run.info.run_name, tags.get("sweep"), params)
        shown.scores = {key: value for key, value in run.data.metrics.items() if key.startswith("test/")}
        shown.points = [(s, {k: v for k, v in p.items() if k not in shown.scores}) for s, p in sorted(steps.items())]
        shown.warnings = [value for key, value in tags.items() if key.startswith("warning.")]
        for path in sorted(Path(run.info.artifact_uri.removeprefix("file://"), "prior samples").glob("*.txt")):
            shown.texts[int(path.stem)] = path.read_text(encoding="utf-8").splitlines()
        shown.ending = {"FINISHED": "finished", "KILLED": "interrupted"}[run.info.status]
        shown.settings = params | {key: tags[key] for key in params if key in tags}
        found.append(shown)
    return found


def of_trackio(folder: Path) -> list[Shown]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = []
    for run in trackio.Api().runs("a project"):
        shown = Shown(run.name, run.config["_Group"], run.config)
        for row in SQLiteStorage.get_logs("a project", run.name, run_id=run.id):
            step = row["step"]
            if "prior samples" in row:
                shown.texts[step] = [each["sentence"] for each in row["prior samples"]["_value"]]
            if "control/kl_weight" in row:
                shown.points.append((step, row))
            else:
                shown.scores = {key: value for key, value in row.items() if key.startswith("test/")}
        shown.warnings = [alert["text"] for alert in run.alerts()]
        found.append(shown)
    return sorted(found, key=lambda shown: shown.settings["_Created"])


READERS = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


def installed(name: str) -> bool:
    try:
        require_packages([name])
    except UserError:
        return False
    return True


# The libraries are installed for these tests only: the extra `tracking`.
@pytest.fixture(scope="module")
def attempts(tmp_path_factory) -> Path:
    """The folder of what three attempts at a run and two other runs have left; see tests/runs/trackers/attempt.py."""
    folder = tmp_path_factory.mktemp("tracking")
    (folder / "mine").mkdir()
    environment = {
        "WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"file:{folder}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true",
    }  # fmt: skip
    for part, code in (("first", -signal.SIGKILL), ("second", -signal.SIGKILL), ("third", 0)):
        text = attempt(part, folder, code, environment)
        assert "continues without" not in text
    return folder


def attempt(part: str, folder: Path, code: int, environment: dict[str, str]) -> str:
    """Run a part of tests/runs/trackers/attempt.py until it ends with ``code``, and return what it prints."""
    names = [name for name in LIBRARIES if installed(name)]
    command = [sys.executable, "-m", "tests.runs.trackers.attempt", part, str(folder / "mine"), *names]
    environment = os.environ | {"TRACKIO_DIR": f"{folder}/trackio", "HF_HUB_OFFLINE": "1"} | environment
    # Not pipes, which the process of Weights & Biases would keep open.
    with (folder / f"{part}.txt").open("w") as said:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=said, stderr=said, timeout=PATIENCE)
    text = (folder / f"{part}.txt").read_text()
    assert done.returncode == code, text
    return text


@pytest.fixture(params=LIBRARIES)
def shown(request, attempts, monkeypatch) -> list[Shown]:
    """The runs that a library shows."""
    needs(installed(request.param), f"needs {request.param}: the extra tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{attempts}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if request.param == "trackio":
        from trackio import sqlite_storage

        monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", attempts / "trackio")
    return READERS[request.param](attempts)


@pytest.mark.cluster
def test_a_resumed_run_continues_the_same_run_and_has_each_step_once(shown, request):
    mine, trial, namesake = shown
    assert [step for step, _ in mine.points] == [10, 20, 30]
    # What a library has of step 20 stays. An offline file of Weights & Biases is new.
    second = 0.9 if "wandb" in request.node.name else 0.2
    assert [point["control/kl_weight"] for _, point in mine.points] == [0.1, second, 0.3]
    assert (mine.name, mine.group, mine.ending) == ("mine", None, mine.ending and "finished")
    # A trial is in the sweep's group, and another run has the same name without being the same.
    assert (trial.name, trial.group, trial.ending) == ("lr-0001", "lr", trial.ending and "interrupted")
    assert namesake.name.startswith("mine")
    assert len(namesake.points) == 1


@pytest.mark.cluster
def test_the_scalars_are_those_of_tensorboard(shown):
    expected = record(10, kl_weight=0.1).scalars()
    _, point = shown[0].points[0]
    assert {key: point[key] for key in expected} == pytest.approx(expected)


@pytest.mark.cluster
def test_texts_warnings_and_scores_are_shown(shown):
    mine = shown[0]
    texts = {step: [f"said at {step}", "<b> é"] for step in (10, 20, 30)}
    assert mine.texts in (texts, {step: texts[step] for step in (20, 30)})  # no record has those of the killed process
    assert mine.warnings == ["the latent is dead"]
    assert mine.scores["test/re"] == VALID.re.mean
    assert "test/nll" not in mine.scores  # it was not computed


@pytest.mark.cluster
def test_settings_are_plain_values(shown):
    settings = shown[0].settings
    assert settings["pretrained"] in (None, "null")
    assert settings["tracking.with"] in (list(LIBRARIES), json.dumps(list(LIBRARIES)))
    assert float(settings["optimizer.learning_rate"]) == 0.5
    assert int(settings["train.max_epochs"]) == 6  # as the resumed run has it


@pytest.mark.cluster
def test_a_run_that_is_trained_further_continues_its_curves(tiny, tmp_path, monkeypatch):
    needs(installed("mlflow"), "needs mlflow: the extra tracking")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tmp_path / "run"
    for epochs in (1, 2):
        settings = ["tracking.with=[mlflow]", "pretrain.max_epochs=1", f"train.max_epochs={epochs}"]
        assert main([str(tiny), f"run={run}", *settings]) == 0
    client = MlflowClient()
    (shown,) = client.search_runs([client.get_experiment_by_name("distvae").experiment_id])
    assert (shown.info.run_name, shown.info.status, shown.data.tags["train.max_epochs"]) == ("run", "FINISHED", "2")
    curves = {name: points for name, points in scalars(run).items() if not name.startswith(("test/", "step/"))}
    assert len(curves["re/valid"]) == 3
    for name, points in curves.items():
        history = client.get_metric_history(shown.info.run_id, name)
        assert [point.step for point in history] == [step for step, _ in points]
        assert [point.value for point in history] == pytest.approx([value for _, value in points])
    results = json.loads((run / "results.json").read_text())
    assert shown.data.metrics["test/re"] == pytest.approx(results["scores"]["re"]["mean"])


@pytest.mark.cluster
def test_a_server_that_never_answers_delays_nothing(tmp_path):
    for name in LIBRARIES:
        needs(installed(name), f"needs {name}: the extra tracking")
    (tmp_path / "mine").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:  # connections wait in its queue
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {
            "WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40,
            "MLFLOW_TRACKING_URI": address, "TRACKIO_SERVER_URL": address, "TRACKIO_WRITE_TOKEN": "0",
        }  # fmt: skip
        text = attempt("unanswered", tmp_path, 0, environment)
    for name in LIBRARIES:
        assert text.count(f"training continues without {name}: ") == 1, text
    assert len(rows(tmp_path / "mine")) == 1


@pytest.mark.cluster
def test_weights_and_biases_asks_nobody_for_a_login(tiny, tmp_path):
    """On a terminal, where it would."""
    needs(installed("wandb"), "needs wandb: the extra tracking")
    ours, theirs = pty.openpty()
    unknown = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, *TRAIN, tiny, f"run={tmp_path}/run", "train.max_epochs=1", "tracking.with=[wandb]"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=unknown | {"HOME": str(tmp_path)}, cwd=tmp_path
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the terminal's end
            while part := os.read(ours, 2**16):
                said += part
                assert b"choice" not in said, said.decode()
        os.close(ours)
    text = " ".join(said.decode().split())
    assert process.returncode == 0, text
    assert "training continues without wandb: there is no login: run `wandb login`, or set WANDB_MODE=offline" in text


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    def version(package: str) -> str:
        if package == "trackio":
            return "1"
        raise PackageNotFoundError

    monkeypatch.setattr(libraries, "version", version)
    require_packages(["tensorboard", "trackio"])
    with pytest.raises(UserError, match="tracking.with=wandb,mlflow: not installed: pip install wandb mlflow-skinny"):
        require_packages(["wandb", "trackio", "mlflow", "wandb"])
