"""Where and when the runs of a table start, and how they end."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from distvae.runs.attempts import read_attempts
from distvae.runs.checkpoints import list_checkpoints
from distvae.system.signals import ENDED, INTERRUPTED, Signals
from distvae.table.__main__ import main
from distvae.table.machine import RUNS_PER_GPU, Slot, Table, slots
from distvae.table.plan import plan
from distvae.train import main as train
from tests.compare import numbers, records
from tests.conftest import ROOT, wait_until
from tests.table.rows import ALONE, AUTOENCODER, NO_SAMPLES


def send(number, condition, process=None):
    """Send a signal, to this process where none is given, once there is something to be interrupted."""

    def wait():
        wait_until(condition, "there is something to interrupt")
        os.kill(os.getpid() if process is None else process.pid, number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def recorded(run):
    """Whether a run has come to the end of an epoch."""
    path = run / "metrics.jsonl"
    return path.exists() and "\n" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("given", [("0",), ("-1",), ("0", "--plan")])
def test_there_is_at_least_one_slot(refused, rows, given):
    said = refused("--rows", rows(kla=ALONE), "--side-by-side", *given)
    assert f"--side-by-side {given[0]}: should be at least 1" in said


def test_a_folder_that_cannot_be_made_is_refused(rows, tmp_path, capsys):
    (tmp_path / "table").write_text("")
    assert main(["--rows", str(rows(kla=ALONE)), "--folder", str(tmp_path / "table")]) == 2
    assert capsys.readouterr().err.startswith(f"distvae: {tmp_path / 'table'}: cannot be written")


@pytest.mark.parametrize(
    ("cores", "gpus", "visible", "asked", "expected"),
    [
        (2, 0, None, None, [(None, 1)] * 2),
        (64, 0, None, None, [(None, 12)] * 5),  # as many as there are runs
        (8, 0, None, 2, [(None, 4)] * 2),
        (2, 0, None, 3, [(None, 1)] * 3),
        (64, 1, None, None, [("0", 12)] * 5),
        (4, 2, None, None, [("0", 1), ("1", 1)] * 2),
        (64, 2, "5,3", 3, [("5", 21), ("3", 21), ("5", 21)]),
        (64, 0, "", None, [(None, 12)] * 5),
    ],
)
def test_slots_are_cores_or_shares_of_gpus(tmp_path, monkeypatch, cores, gpus, visible, asked, expected):
    monkeypatch.setattr("distvae.table.machine.usable_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = slots(plan(ROOT / "configs" / "snli", tmp_path, (0,), ()), asked)
    assert [(slot.gpu, slot.threads) for slot in found] == expected


def test_a_gpu_takes_so_many_runs_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr("distvae.table.machine.usable_cores", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    many = plan(ROOT / "configs" / "snli", tmp_path, range(5), ())
    assert len(slots(many, None)) == RUNS_PER_GPU


def test_a_run_gets_its_slot(rows, stand_in, tmp_path):
    stand_in("print(os.environ.get('CUDA_VISIBLE_DEVICES'), *sys.argv[2:])")
    folder = rows(kla=ALONE)
    file = folder / "kla.yaml"
    file.write_text(file.read_text().replace("cpu_threads: 1\n", ""), encoding="utf-8")
    for number, (slot, told) in enumerate([(Slot("3", 2), ("3", False)), (Slot(None, 2), (None, True))]):
        table = tmp_path / str(number)
        assert Table(plan(folder, table, (0,), ()), table, [slot], Signals()).run() == 0
        device, *overrides = (table / "seed-0" / "kla.log").read_text().split()
        assert told == (None if device == "None" else device, "cpu_threads=2" in overrides)
    file.write_text(file.read_text() + "cpu_threads: 7\n", encoding="utf-8")
    table = tmp_path / "own"
    assert Table(plan(folder, table, (0,), ()), table, [Slot(None, 2)], Signals()).run() == 0
    assert "cpu_threads" not in (table / "seed-0" / "kla.log").read_text()


def test_runs_take_turns_and_wait_for_their_pretraining(rows, stand_in, tmp_path, capsys):
    stand_in("a = time.monotonic(); time.sleep(0.05); print(a, time.monotonic())")
    folder = rows(ae=AUTOENCODER, kla=ALONE, pt={}, pt_kla={})
    table = tmp_path / "table"
    assert main(["--rows", str(folder), "--folder", str(table), "--seeds", "1,0", "--side-by-side", "2"]) == 0
    said = capsys.readouterr().out
    names = [f"seed-{seed}/{row}" for seed in (1, 0) for row in ("ae", "kla", "pt", "pt_kla")]
    spans = {name: [float(t) for t in (table / f"{name}.log").read_text().split()] for name in names}
    for name, (began, _) in spans.items():
        assert said.count(f"{name}: finished") == 1
        assert sum(other <= began < end for other, end in spans.values()) <= 2
        if "pt" in name:
            assert began > spans[f"{name.partition('/')[0]}/ae"][1]


def test_what_a_run_says_is_kept_and_its_epochs_are_shown(rows, stand_in, tmp_path, capsys):
    stand_in(
        "print('hello')",
        "sys.stdout.write('train 1 '); time.sleep(0.5); print('γ')",
        "print('WARNING w', file=sys.stderr)",
        "sys.stdout.buffer.write(b'train 2 \\xff\\n')",
        r"print('train 3 \x1b[31m\u202e')",
        "print('train cut', end='')",
    )
    arguments = ["--rows", str(rows(kla=ALONE)), "--folder", str(tmp_path / "table"), "--seeds", "0"]
    for times in (1, 2):  # the second goes on in the same log, and does not show the first's again
        assert main(arguments) == 0
        shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("seed-0/kla  ")]
        assert [line.split(maxsplit=1)[1] for line in shown] == [
            "train 1 γ",
            "WARNING w",
            "train 2 \N{REPLACEMENT CHARACTER}",
            r"train 3 \x1b[31m\u202e",
        ]
        log = (tmp_path / "table" / "seed-0" / "kla.log").read_bytes()
        assert log.count("hello\ntrain 1 γ\n".encode()) == times


def test_a_row_whose_name_is_a_terminal_code_is_refused(rows, tmp_path, capsys):
    folder = rows(kla=ALONE)
    (folder / "kla.yaml").rename(folder / "\x1b[31m.yaml")
    assert main(["--rows", str(folder), "--folder", str(tmp_path / "table"), "--plan"]) == 2
    assert "\\x1b[31m.yaml: has a name that a terminal cannot show" in capsys.readouterr().err


# As distvae/train.py ends where there is nothing to save yet.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, INTERRUPTED), (signal.SIGINT, ENDED)])
def test_a_signal_that_comes_while_runs_are_loaded_interrupts_them(rows, stand_in, tmp_path, capsys, number, code):
    stand_in(
        "print('loading')",
        "time.sleep(1)",
        f"signal.signal({int(number)}, lambda *_: os._exit({code}))",
        f"signal.pthread_sigmask(signal.SIG_UNBLOCK, {{{int(number)}}})",
        "time.sleep(60)",
    )
    table, folder = tmp_path / "table", rows(ae=AUTOENCODER, kla=ALONE, pt={})
    log = table / "seed-0" / "kla.log"
    sent = send(number, lambda: log.exists() and log.read_text())
    arguments = ["--rows", str(folder), "--folder", str(table), "--seeds", "0", "--side-by-side", "2"]
    assert main(arguments) == INTERRUPTED
    sent.join()
    said = capsys.readouterr()
    assert said.err == "interrupted; rerun the same command to resume\n"
    assert "seed-0/kla: interrupted" in said.out
    assert "failed" not in said.out
    assert not (table / "seed-0" / "pt.log").exists()


def test_a_second_interrupt_ends_at_once(rows, stand_in, tmp_path):
    stand_in(
        "def again(*_):",
        "    os.kill(os.getppid(), signal.SIGINT); time.sleep(1); os._exit(0)",
        "signal.signal(signal.SIGINT, again)",
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})",
        "print('ready'); time.sleep(60)",
    )
    log = tmp_path / "table" / "seed-0" / "kla.log"
    sent = send(signal.SIGINT, lambda: log.exists() and log.read_text())
    assert main(["--rows", str(rows(kla=ALONE)), "--folder", str(tmp_path / "table"), "--seeds", "0"]) == 130
    sent.join()


def test_under_nohup_a_hangup_interrupts_nothing(rows, stand_in, tmp_path):
    stand_in("print('begun'); time.sleep(1)")
    log = tmp_path / "table" / "seed-0" / "kla.log"
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sent = send(signal.SIGHUP, lambda: log.exists() and log.read_text())
        assert main(["--rows", str(rows(kla=ALONE)), "--folder", str(tmp_path / "table"), "--seeds", "0"]) == 0
        sent.join()
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.fixture(params=["a stand-in", pytest.param("distvae/train.py", marks=pytest.mark.cluster)])
def failing(request, rows, stand_in):
    """A folder of configs whose autoencoder fails."""
    if request.param == "a stand-in":
        stand_in("if row == 'ae': print('distvae: the loss is not finite'); sys.exit(2)")
    bad = {"optimizer": {"learning_rate": 1e30, "clip_norm": None}}
    return rows(ae=AUTOENCODER | bad, kla=ALONE, pt=bad)


def test_a_failure_stops_those_alone_that_need_its_pretraining(failing, written, tmp_path, capsys):
    table = tmp_path / "table"
    arguments = ["--rows", str(failing), "--folder", str(table), "--seeds", "0", "--side-by-side", "1"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err == f"distvae: seed-0/ae failed; see {table / 'seed-0' / 'ae.log'}\n"
    assert "is not finite" in (table / "seed-0" / "ae.log").read_text()
    assert "seed-0/ae: failed with exit code 2" in said.out
    assert "is not finite" in said.out
    assert "seed-0/kla: finished" in said.out
    assert "seed-0/pt: not started, because its pretraining seed-0/ae did not finish" in said.out
    assert not (table / "seed-0" / "pt.log").exists()
    # The report is of what has begun: a stand-in leaves nothing of that.
    begun = [run for name in ("ae", "kla") if (run := table / "seed-0" / name).exists()]
    assert written == ([(begun, table)] if begun else [])


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (signal.SIGTERM, ("ae", "pt")),
        pytest.param(signal.SIGINT, ("ae", "kla", "pt"), marks=pytest.mark.cluster),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_an_interrupted_table_goes_on_as_if_nothing_had_been(
    rows, written, tmp_path, capsys, monkeypatch, number, names
):
    kinds = {"ae": AUTOENCODER, "kla": ALONE, "pt": {}}
    folder, table = rows(**{name: kinds[name] for name in names}), tmp_path / "table"
    given = ["pretrain.max_epochs=15", "train.max_epochs=15", "plateau.patience=15", *NO_SAMPLES]
    arguments = ["--rows", str(folder), "--folder", str(table), "--seeds", "0", "--side-by-side", "2", *given]
    runs = {name: table / "seed-0" / name for name in names}
    first = [runs[name] for name in names if name != "pt"]
    sent = send(number, lambda: any(recorded(run) for run in first))
    assert main(arguments) == INTERRUPTED
    sent.join()
    assert capsys.readouterr().err == "interrupted; rerun the same command to resume\n"
    for run in filter(recorded, first):  # on a busy machine one may be late
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
        assert len(records(run)) < 15
        assert list_checkpoints(run)
        assert all(start.ended for start in read_attempts(run))
    assert not runs["pt"].exists()
    assert written == []

    assert main(arguments) == 0
    assert (runs["pt"] / "environment.json").stat().st_mtime >= (runs["ae"] / "results.json").stat().st_mtime
    for row in plan(folder, tmp_path / "alone", (0,), given):
        assert train([str(row.config_file), *row.overrides]) == 0
        here, there = (load_file(at / row.name / "best" / "model.safetensors") for at in (table, tmp_path / "alone"))
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here)
        assert numbers(table / row.name) == numbers(tmp_path / "alone" / row.name)

    # What has finished is left alone.
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for run in runs.values() for path in (run, *run.rglob("*"))}
    monkeypatch.setattr(subprocess, "Popen", None)
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[: len(names)] == [f"seed-0/{name}: finished" for name in names]
    assert {path: path.stat().st_mtime_ns for run in runs.values() for path in (run, *run.rglob("*"))} == before
    assert written == [([table / "seed-0" / name for name in names], table)] * 2
    assert main([*arguments, "--plan"]) == 0
    assert all(line.split()[1] == "finished" for line in capsys.readouterr().out.splitlines())
    # It answers for the sentences that it was trained on, and for no others.
    results = runs["ae"] / "results.json"
    results.write_text(results.read_text().replace(json.loads(results.read_text())["data"], "0123456789abcdef"))
    assert main(arguments) == 2
    assert "seed-0/ae: was trained on other sentences (0123456789abcdef)" in capsys.readouterr().err


def test_no_run_trains_on_without_the_program(rows, tmp_path):
    table = tmp_path / "table"
    run = table / "seed-0" / "kla"
    command = [sys.executable, str(ROOT / "launch" / "table.py"), "--rows", str(rows(kla=ALONE)), "--seeds", "0"]
    process = subprocess.Popen([*command, "--folder", str(table), "train.max_epochs=100000", "plateau.patience=100000"])
    send(signal.SIGKILL, lambda: recorded(run), process).join()
    assert process.wait() == -signal.SIGKILL
    log = table / "seed-0" / "kla.log"
    wait_until(lambda: "; rerun the same command to resume" in log.read_text(), "the run ends", log.read_text)
    assert read_attempts(run)[0].ended
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert list_checkpoints(run)
