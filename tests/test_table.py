"""launch/table.py: what it plans and refuses, where and when runs start, how they end; and what the demo's rows come
to."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from distvae.config.load import load_config
from distvae.data import corpus
from distvae.reports import report
from distvae.runs.attempts import read_attempts
from distvae.runs.checkpoints import list_checkpoints
from distvae.runs.results import load_results
from distvae.system.signals import ENDED, INTERRUPTED, Signals
from distvae.train import main as train
from launch import table as launcher
from launch.table import Slot, Table, plan, slots
from tests.compare import numbers, records
from tests.conftest import ROOT

PAPERS = ("ae", "kla", "pt_kla", "pt_kla_fb", "pt_kla_sfb")
ALONE = {"pretrain": {"max_epochs": 0}, "kl": {"policy": "linear", "target_rate": 4.0}}
AUTOENCODER = {"train": {"max_epochs": 0}}
WIDE = {"model": {"hidden_size": 9}}
NO_KL = {"policy": "constant", "anneal_epochs": 10, "target_rate": 4.0}
LANGUAGE_MODEL = {"model": {"latent_size": 0}, "pretrain": {"max_epochs": 0}, "kl": NO_KL}
NO_SAMPLES = ("evaluation.samples=0", "evaluation.importance_samples=1")


@pytest.fixture
def rows(tiny, tmp_path):
    """Writes a folder of configs, each of which is the tiny run's with other sections."""

    def write(**changes):
        folder = tmp_path / "rows"
        folder.mkdir()
        for name, sections in changes.items():
            tree = yaml.safe_load(tiny.read_text(encoding="utf-8"))
            for section, values in sections.items():
                tree[section] = tree[section] | values
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the program on input that it must refuse; returns the one line that it says."""

    def run(*arguments):
        assert launcher.main([*map(str, arguments), "--folder", str(tmp_path / "table")]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("distvae: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


@pytest.fixture
def written(monkeypatch):
    """The reports that are asked for in the end: of which runs, and where."""
    reports, write = [], report.write

    def recorded(*asked):
        reports.append(asked)
        return write(*asked)

    monkeypatch.setattr(report, "write", recorded)
    return reports


@pytest.fixture
def stand_in(tmp_path, monkeypatch, written):
    """Puts a program of a few lines in the place of distvae/train.py, which knows the name of its row."""

    def write(*lines):
        program = tmp_path / "code" / "distvae" / "train.py"
        program.parent.mkdir(parents=True)
        head = ["import os, signal, sys, time", "row = os.path.basename([a for a in sys.argv if a[:4] == 'run='][0])"]
        program.write_text("\n".join([*head, *lines]), encoding="utf-8")
        monkeypatch.setattr(launcher, "ROOT", tmp_path / "code")

    return write


def send(number, condition, process=None):
    """Send a signal, to this process where none is given, once there is something to be interrupted."""

    def wait():
        end = time.monotonic() + 120
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid() if process is None else process.pid, number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def recorded(run):
    """Whether a run has come to the end of an epoch."""
    path = run / "metrics.jsonl"
    return path.exists() and "\n" in path.read_text(encoding="utf-8")


# -- The plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["snli", "demo"])
def test_the_papers_rows_are_planned_behind_their_pretraining(tmp_path, name):
    found = plan(ROOT / "configs" / name, tmp_path, (0, 1), ())
    assert [row.name for row in found] == [f"seed-{seed}/{row}" for seed in (0, 1) for row in PAPERS]
    for row in found:
        seed, config = row.name.partition("/")[0], row.config
        assert config.run == str(tmp_path / row.name)
        assert f"seed-{config.seed}" == seed
        source = f"{seed}/ae" if "pt_" in row.name else None
        assert row.after == source
        assert config.pretrained == (None if source is None else str(tmp_path / source))
        assert not row.finished


def test_the_demos_rows_differ_in_their_method_alone():
    configs = {name: load_config(ROOT / "configs" / "demo" / f"{name}.yaml") for name in PAPERS}
    cure = configs["pt_kla_sfb"]
    for config in configs.values():
        assert (config.data, config.model, config.optimizer) == (cure.data, cure.model, cure.optimizer)
        assert (config.plateau, config.evaluation, config.cpu_threads) == (cure.plateau, cure.evaluation, 1)
        assert config.kl.policy.warm_up == cure.kl.policy.warm_up or not config.train.max_epochs
    for name in ("ae", "pt_kla", "pt_kla_fb"):
        assert configs[name].pretrain == cure.pretrain
    for name in ("pt_kla", "pt_kla_fb"):
        assert configs[name].train == cure.train
    assert configs["kla"].train.max_epochs == cure.pretrain.max_epochs + cure.train.max_epochs


def test_overrides_are_for_all_rows_and_epochs_of_a_stage_for_those_that_have_it(tmp_path):
    given = ["pretrain.max_epochs=3", "train.max_epochs=2", "data.path=captions", "data.max_words=null"]
    given += ["data.distinct=false"]
    found = {row.name.partition("/")[2]: row for row in plan(ROOT / "configs" / "snli", tmp_path, (7,), given)}
    epochs = {name: (row.config.pretrain.max_epochs, row.config.train.max_epochs) for name, row in found.items()}
    assert epochs == {"ae": (3, 0), "kla": (0, 2)} | dict.fromkeys(PAPERS[2:], (3, 2))
    assert all(row.config.data.path == "captions" for row in found.values())
    # What is planned is what the run's own program makes of its command.
    for row in found.values():
        _, program, file, *overrides = row.command("cpu_threads=3")
        assert program == str(ROOT / "distvae" / "train.py")
        config = load_config(file, overrides)
        assert (config.run, config.seed, config.pretrained) == (row.config.run, 7, row.config.pretrained)
        assert config.cpu_threads == 3


def test_the_launchers_precision_is_the_rows(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "PRECISION", "bf16")
    folder = rows(kla=ALONE, exact=ALONE | {"optimizer": {"mixed_precision": "no"}})
    precisions = {row.name: row.config.optimizer.mixed_precision for row in plan(folder, tmp_path, (0,), ())}
    assert precisions == {"seed-0/exact": "no", "seed-0/kla": "bf16"}


def test_a_plan_is_a_line_a_run_in_the_words_of_a_shell(rows, tmp_path, capsys, monkeypatch):
    folder = rows(ae=AUTOENCODER, kla=ALONE, pt={})
    arguments = ["--rows", str(folder), "--folder", str(tmp_path / "my table"), "--seeds", "4", "--plan"]
    assert launcher.main([*arguments, "train.max_epochs=1"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["seed-4/ae", "-"], ["seed-4/kla", "-"], ["seed-4/pt", "seed-4/ae"]]
    for name, _, file, *overrides in lines:
        assert load_config(file, overrides).run == str(tmp_path / "my table" / name)
    assert not (tmp_path / "my table").exists()
    # Nothing waits for what has finished.
    monkeypatch.setattr("distvae.runs.resume.finished", lambda config, run: "results" if run.name == "ae" else None)
    assert launcher.main(arguments) == 0
    heads = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [head for head in heads if head[1] != "finished"] == [["seed-4/kla", "-"], ["seed-4/pt", "-"]]


def test_rows_without_pretraining_need_no_source(rows, tmp_path):
    folder = rows(one=ALONE, two=ALONE)
    assert [(row.name, row.after) for row in plan(folder, tmp_path, (3,), ())] == [
        ("seed-3/one", None), ("seed-3/two", None),
    ]  # fmt: skip


# -- What is refused ---------------------------------------------------------------------------------------------------


def test_a_folder_without_configs_is_refused(refused, tmp_path):
    assert "holds no config" in refused("--rows", tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("modle.latent_size=3", "did you mean model"),
        ("kl.target_rate=-1", "kl.target_rate"),
        ("epochs", "key=value"),
        ("run=elsewhere", "--folder"),
        ("seed=1", "--seeds"),
        ("pretrained=elsewhere", "each row has its own"),
        ("pretrain.max_epochs=0", "nothing to train"),
    ],
)
def test_an_override_that_no_row_can_take_is_refused(refused, rows, given, said):
    assert said in refused("--rows", rows(ae=AUTOENCODER, pt={}), given)


def test_an_override_reaches_the_rows_that_read_it(rows, tmp_path, refused):
    configs = rows(ae=AUTOENCODER, kla=ALONE, pt={})
    planned = launcher.plan(configs, tmp_path / "table", (0,), ["kl.threshold=0.2", "kl.anneal_epochs=1"])
    found = {row.config_file.stem: [word for word in row.overrides if word.startswith("kl.")] for row in planned}
    both = ["kl.threshold=0.2", "kl.anneal_epochs=1"]
    assert found == {"ae": both, "kla": both[1:], "pt": both}
    said = refused("--rows", configs, "kl={policy: linear}", "kl.threshold=0.2")
    assert f"kl.threshold=0.2: no row of {configs} reads it" in said


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({}, "with the same settings: there is none"),
        ({"ae": AUTOENCODER, "other": AUTOENCODER}, "of one row, but ae.yaml, other.yaml all pretrain alike; keep one"),
        ({"ae": AUTOENCODER | WIDE}, "with the same settings: ae.yaml has model.hidden_size=9, not 16"),
    ],
)
def test_pretraining_comes_from_the_one_row_that_pretrains_alike(refused, rows, sources, expected):
    said = refused("--rows", rows(kla=ALONE, pt={}, **sources))
    assert "pt.yaml: needs the pretraining of " in said
    assert expected in said


def test_each_row_takes_its_own_kind_of_pretraining(rows, tmp_path):
    configs = rows(ae=AUTOENCODER, pt={}, wide_ae=AUTOENCODER | WIDE, wide_pt=WIDE, kla=ALONE)
    after = {row.name: row.after for row in plan(configs, tmp_path, (0,), ())}
    assert {name: source for name, source in after.items() if source} == {
        "seed-0/pt": "seed-0/ae",
        "seed-0/wide_pt": "seed-0/wide_ae",
    }
    assert list(after)[:2] == ["seed-0/ae", "seed-0/wide_ae"]


def test_rows_of_different_sentences_are_refused_before_any_trains(refused, rows):
    said = refused("--rows", rows(kla=ALONE, other=ALONE | {"data": {"train_size": 33}}))
    assert "other.yaml: data.train_size is 33, and " in said
    assert "in kla.yaml; the rows of a table need the same sentences" in said


def test_a_language_model_leaves_out_what_it_does_not_read(rows, tmp_path):
    configs = rows(lm=LANGUAGE_MODEL, kla=ALONE, pt={}, ae=AUTOENCODER)
    given = ["model.latent_size=5", "model.hidden_size=9", "kl.weight=0.5", "pretrain.max_epochs=3"]
    found = {row.config_file.stem: row for row in plan(configs, tmp_path, (0,), given)}
    assert [word for word in found["lm"].overrides if word in given] == ["model.hidden_size=9"]
    assert found["lm"].config.language_model
    assert found["pt"].config.model.latent_size == found["ae"].config.model.latent_size == 5
    assert found["kla"].config.kl.policy.weight == 0.5


def test_a_corpus_file_is_below_the_overrides_and_above_the_rows(rows, tmp_path, refused):
    configs, corpus = rows(kla=ALONE, ae=AUTOENCODER), tmp_path / "mine.yaml"
    (tmp_path / "below.yaml").write_text("optimizer: {learning_rate: 0.25}")
    corpus.write_text(
        "base: below.yaml\ndata: {train_size: 21, path: captions}\nkl: {cycles: 3}\ntrain: {max_epochs: 9}"
    )
    for row in plan(configs, tmp_path / "table", (0,), ["data.train_size=22"], corpus):
        assert (row.config.data.train_size, row.config.optimizer.learning_rate) == (22, 0.25)
        assert row.config.train.max_epochs == (9 if row.after is None and "kla" in row.name else 0)
        assert [word for word in row.overrides if "train_size" in word] == ["data.train_size=22"]
    corpus.write_text("seed: 1")
    assert "seed=1: each row has its own" in refused("--rows", configs, "--corpus", corpus)
    assert "nowhere.yaml: cannot be read" in refused("--rows", configs, "--corpus", tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("corpus", sorted((ROOT / "configs" / "corpus").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_method_can_train_on_every_corpus(corpus, tmp_path):
    found = plan(ROOT / "configs" / "field", tmp_path, (0,), [f"data.path={tmp_path}"], corpus)
    assert len(found) == len(list((ROOT / "configs" / "field").glob("*.yaml")))
    assert {row.config.model.hidden_size for row in found} == {load_config(corpus).model.hidden_size}
    assert {row.config.data.tokenizer for row in found} == {load_config(corpus).data.tokenizer}


def test_the_folder_has_the_names_of_the_rows_and_the_corpus(rows, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("data: {train_size: 21}")
    for more, name in ([], "rows"), (["--corpus", str(tmp_path / "mine.yaml")], "rows-mine"):
        configs = tmp_path / "rows" if (tmp_path / "rows").exists() else rows(kla=ALONE)
        assert launcher.main(["--rows", str(configs), "--seeds", "0", "--plan", *more]) == 0
        assert f"run=runs/table/{name}/seed-0/kla" in capsys.readouterr().out


def test_epochs_are_those_of_a_row_in_all(rows, tmp_path, refused):
    configs = rows(ae=AUTOENCODER, kla=ALONE, pt={})
    given = ["pretrain.max_epochs=4"]
    found = {row.config_file.stem: row.config for row in plan(configs, tmp_path, (0,), given, epochs=10)}
    epochs = {name: (config.pretrain.max_epochs, config.train.max_epochs) for name, config in found.items()}
    assert epochs == {"ae": (4, 0), "kla": (0, 10), "pt": (4, 6)}
    assert "pt.yaml pretrains for 4; give more" in refused("--rows", configs, *given, "--epochs", 4)


@pytest.mark.parametrize("given", [(), ("data.path=nowhere",)])
def test_the_fields_rows_differ_in_their_method_alone(tmp_path, given):
    """Every row has the same sentences, sizes and number of epochs, and a name of its own."""
    found = plan(ROOT / "configs" / "field", tmp_path, (0,), given)
    rows = [row.config for row in found if row.config.train.max_epochs]
    first = next(config for config in rows if config.kl.policy.name == "linear" and config.pretrained is None)
    for config in rows:
        assert config.pretrain.max_epochs + config.train.max_epochs == first.train.max_epochs
        assert (config.data, config.optimizer, config.plateau) == (first.data, first.optimizer, first.plateau)
        assert config.model.hidden_size == first.model.hidden_size
        assert config.kl.rate in (None, 4.0)
        assert config.kl.policy.warm_up < config.train.max_epochs
    assert len(found) == len(list((ROOT / "configs" / "field").glob("*.yaml")))
    assert sum(config.language_model for config in rows) == 1


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_at_least_one_slot(refused, rows, count):
    assert f"--side-by-side {count}: should be at least 1" in refused(
        "--rows", rows(kla=ALONE), "--side-by-side", count
    )


@pytest.mark.parametrize("seeds", ["1,1", "1,x", "", "-1,2"])
def test_seeds_are_different_numbers(capsys, seeds):
    with pytest.raises(SystemExit) as ended:
        launcher.main([f"--seeds={seeds}"])
    assert ended.value.code == 2
    assert f"{seeds!r}: should be" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_under_another_config_is_refused(refused, rows, finished, tmp_path):
    (tmp_path / "table" / "seed-0").mkdir(parents=True)
    (tmp_path / "table" / "seed-0" / "kla").symlink_to(finished)
    said = refused("--rows", rows(kla=ALONE))
    assert "seed-0/kla: cannot resume under another config" in said
    assert "kl.policy (soft_free_bits there, linear here)" in said


def test_sentences_that_are_not_there_are_refused(refused, rows, tmp_path):
    """Before any run says so, and each in its own log."""
    assert "data.path=nowhere" in refused("--rows", rows(ae=AUTOENCODER, kla=ALONE), "data.path=nowhere")
    assert not (tmp_path / "table").exists()


def test_a_folder_that_cannot_be_made_is_refused(rows, tmp_path, capsys):
    (tmp_path / "table").write_text("")
    assert launcher.main(["--rows", str(rows(kla=ALONE)), "--folder", str(tmp_path / "table")]) == 2
    assert capsys.readouterr().err.startswith(f"distvae: {tmp_path / 'table'}: cannot be written")


# -- Slots -------------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(launcher, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = slots(plan(ROOT / "configs" / "snli", tmp_path, (0,), ()), asked)
    assert [(slot.gpu, slot.threads) for slot in found] == expected


def test_a_gpu_takes_so_many_runs_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "usable_cores", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    many = plan(ROOT / "configs" / "snli", tmp_path, range(5), ())
    assert len(slots(many, None)) == launcher.RUNS_PER_GPU


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


# -- Running -----------------------------------------------------------------------------------------------------------


def test_runs_take_turns_and_wait_for_their_pretraining(rows, stand_in, tmp_path, capsys):
    stand_in("a = time.monotonic(); time.sleep(0.05); print(a, time.monotonic())")
    folder = rows(ae=AUTOENCODER, kla=ALONE, pt={}, pt_kla={})
    table = tmp_path / "table"
    assert launcher.main(["--rows", str(folder), "--folder", str(table), "--seeds", "1,0", "--side-by-side", "2"]) == 0
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
        assert launcher.main(arguments) == 0
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
    assert launcher.main(["--rows", str(folder), "--folder", str(tmp_path / "table"), "--plan"]) == 2
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
    assert launcher.main(arguments) == INTERRUPTED
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
    assert launcher.main(["--rows", str(rows(kla=ALONE)), "--folder", str(tmp_path / "table"), "--seeds", "0"]) == 130
    sent.join()


def test_under_nohup_a_hangup_interrupts_nothing(rows, stand_in, tmp_path):
    stand_in("print('begun'); time.sleep(1)")
    log = tmp_path / "table" / "seed-0" / "kla.log"
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sent = send(signal.SIGHUP, lambda: log.exists() and log.read_text())
        assert launcher.main(["--rows", str(rows(kla=ALONE)), "--folder", str(tmp_path / "table"), "--seeds", "0"]) == 0
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
    assert launcher.main(arguments) == 1
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
    assert launcher.main(arguments) == INTERRUPTED
    sent.join()
    assert capsys.readouterr().err == "interrupted; rerun the same command to resume\n"
    for run in filter(recorded, first):  # on a busy machine one may be late
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
        assert len(records(run)) < 15
        assert list_checkpoints(run)
        assert all(start.ended for start in read_attempts(run))
    assert not runs["pt"].exists()
    assert written == []

    assert launcher.main(arguments) == 0
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
    assert launcher.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[: len(names)] == [f"seed-0/{name}: finished" for name in names]
    assert {path: path.stat().st_mtime_ns for run in runs.values() for path in (run, *run.rglob("*"))} == before
    assert written == [([table / "seed-0" / name for name in names], table)] * 2
    assert launcher.main([*arguments, "--plan"]) == 0
    assert all(line.split()[1] == "finished" for line in capsys.readouterr().out.splitlines())
    # It answers for the sentences that it was trained on, and for no others.
    results = runs["ae"] / "results.json"
    results.write_text(results.read_text().replace(json.loads(results.read_text())["data"], "0123456789abcdef"))
    assert launcher.main(arguments) == 2
    assert "seed-0/ae: was trained on other sentences (0123456789abcdef)" in capsys.readouterr().err


def test_no_run_trains_on_without_the_program(rows, tmp_path):
    table = tmp_path / "table"
    run = table / "seed-0" / "kla"
    command = [sys.executable, str(ROOT / "launch" / "table.py"), "--rows", str(rows(kla=ALONE)), "--seeds", "0"]
    process = subprocess.Popen([*command, "--folder", str(table), "train.max_epochs=100000", "plateau.patience=100000"])
    send(signal.SIGKILL, lambda: recorded(run), process).join()
    assert process.wait() == -signal.SIGKILL
    end = time.monotonic() + 60
    log = table / "seed-0" / "kla.log"
    while "; rerun the same command to resume" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert read_attempts(run)[0].ended
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert list_checkpoints(run)


# -- What the rows come to ---------------------------------------------------------------------------------------------


def unigram_nll(sentences):
    """What the test sentences score, in nats each, under the frequencies of words and ``</s>`` in the training ones."""
    counts = np.bincount(np.concatenate([ids[1:] for ids in sentences.train]), minlength=len(sentences.vocabulary))
    return np.mean([-np.log(counts[ids[1:]] / counts.sum()).sum() for ids in sentences.test])


@pytest.mark.long
def test_the_demos_rows_collapse_and_are_cured_as_the_paper_says(cache, tmp_path):
    """The held-out check: as a user trains them, two at a time on a core each, some five minutes on two free ones."""
    command = [sys.executable, "launch/table.py", "--rows", "configs/demo", "--seeds", "0", "--side-by-side", "2"]
    given = ["--folder", str(tmp_path), f"data.cache={cache}"]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    runs = {name: tmp_path / "seed-0" / name for name in PAPERS}
    found = {name: load_results(run) for name, run in runs.items()}
    assert (tmp_path / "report.html").exists()
    scores = {name: results.scores for name, results in found.items()}
    rate = load_config(runs["pt_kla_sfb"] / "config.yaml").kl.rate

    collapsed, cured = scores["kla"], scores["pt_kla_sfb"]
    assert collapsed.kl.mean < 0.3
    assert collapsed.active_units <= 2
    assert cured.kl.mean == pytest.approx(rate, rel=0.15)
    assert cured.active_units >= 3
    assert cured.mutual_information.mean > cured.kl.mean / 2

    # Pretraining holds no KL by itself, and free bits hold each dimension at its share of λ.
    assert scores["pt_kla"].kl.mean < rate / 4
    held = np.array(scores["pt_kla_fb"].kl_per_dimension) * len(scores["pt_kla_fb"].kl_per_dimension) / rate
    assert held.mean() == pytest.approx(1, rel=0.2)
    assert held.min() > 0.5
    assert held.max() < 2

    unigram = unigram_nll(corpus.load(cache / found["kla"].data))
    for name in PAPERS[1:]:
        nll, floor = scores[name].nll, found[name].floor.nll
        assert nll.mean - floor.mean > 3 * math.hypot(nll.standard_error, floor.standard_error), name
        assert nll.mean < unigram, name
        assert scores[name].bound_holds, name
