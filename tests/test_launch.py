"""The ways to launch: files for accelerate's launcher."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from tests.conftest import PATIENCE, ROOT, TRAIN, free_port, launch, wait_until

FILES = {path.stem: path for path in sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))}
TYPES = {
    "cpu": "MULTI_GPU",  # MULTI_CPU would start one process
    "gpu": "NO",
    "multi_gpu": "MULTI_GPU",
    "multi_node": "MULTI_GPU",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "fsdp2": "FSDP",
}
ONE_EPOCH = ["pretrain.max_epochs=0", "train.max_epochs=1", "evaluation.samples=0", "evaluation.importance_samples=1"]


@pytest.mark.parametrize("name", TYPES)
def test_a_file_says_what_it_starts(name):
    settings = load_config_from_file(str(FILES[name]))
    assert settings.distributed_type == TYPES[name]
    assert settings.mixed_precision == "no"
    assert settings.use_cpu is False
    text = FILES[name].read_text()
    assert f"accelerate launch --config_file launch/accelerate/{name}.yaml" in text
    if name.startswith("zero"):
        assert settings.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp2":
        assert settings.fsdp_config["fsdp_version"] == 2


def test_every_file_is_in_the_documents():
    assert set(FILES) == set(TYPES)
    table = (ROOT / "docs" / "launching.md").read_text()
    assert all(f"| `{name}` |" in table for name in FILES)


def test_the_readmes_rows_name_files_that_are_there():
    rows = (ROOT / "README.md").read_text().split("## Ways to launch")[1].split("\n\n")[1]
    assert "| one process, on the CPU or one GPU | `distvae train CONFIG` |" in rows
    named = set(re.findall(r"launch/accelerate/(\w+)\.yaml", rows))
    assert {"cpu", "multi_gpu", "multi_node"} <= named <= set(FILES)


@pytest.mark.parametrize("program", ["train.py", "cli.py"])
def test_packages_of_a_program_hide_no_others(tmp_path, program):
    (tmp_path / "config.py").write_text("print('another config')")
    (tmp_path / "sitecustomize.py").write_text("import atexit; atexit.register(lambda: __import__('config'))")
    done = subprocess.run(
        [sys.executable, ROOT / "distvae" / program, "--help"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert done.stdout.startswith("usage: distvae"), done.stderr
    assert done.stdout.endswith("\nanother config\n")


@pytest.mark.cluster
def test_ctrl_c_under_the_readmes_command_is_one_line(tiny, tmp_path):
    """A terminal sends SIGINT to all processes in its foreground."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *TRAIN, str(tiny), f"run={run}", "pretrain.max_epochs=100000", "plateau.patience=100000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text(), "an epoch ends")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert re.fullmatch(rf"{re.escape(str(run))}: interrupted at step \d+ by SIGINT; .*\n", said)
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.cluster
@pytest.mark.parametrize("program", [TRAIN, ("-m", "distvae", "train")], ids=["train.py", "distvae"])
@pytest.mark.parametrize(("at", "code"), [("numpy", -signal.SIGINT), ("torch.version", 128 + signal.SIGINT)])
def test_ctrl_c_while_the_program_is_loaded_prints_nothing(tiny, tmp_path, program, at, code):
    """PyTorch is imported when the program has taken over the signals."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *program, str(tiny), f"run={tmp_path / 'run'}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if line.rstrip().endswith(f" {at}"):
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == code
    assert all(line.startswith("import time:") for line in said)


# tests/distributed/test_engines.py starts the others.
@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, tests/test_gpu.py starts these on it")
@pytest.mark.parametrize(("name", "processes"), [("gpu", 1), ("multi_gpu", 2)])
def test_a_file_for_gpus_starts_where_there_is_none(tiny, tmp_path, name, processes):
    done = launch(str(tiny), *ONE_EPOCH, f"run={tmp_path / 'run'}", processes=processes, engine=name)
    assert done.returncode == 0, done.stderr
    assert ("2 processes by DDP on CPU" if processes == 2 else "1 process on CPU") in done.stdout


def test_two_launchers_make_one_run(tiny, tmp_path):
    """multi_node.yaml as on two machines. tests/slurm uses it on a real cluster."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILES["multi_node"])]
    command += ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    command += ["--main_process_port", str(free_port())]
    machines = [
        subprocess.Popen(
            [*command, "--machine_rank", str(rank), *TRAIN, str(tiny), *ONE_EPOCH, f"run={tmp_path / 'run'}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=PATIENCE) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "2 processes by DDP on CPU" in outputs[0][0]
    assert outputs[1][0] == ""


def test_what_is_wrong_is_said_once_though_the_other_process_is_the_first_to_find_it(tmp_path):
    """Launchers end all processes when one has ended, even the one that is to report the error."""
    program = tmp_path / "late.py"
    program.write_text(
        "import os, sys, time\n"
        "from distvae.system.errors import UserError, tell\n"
        "time.sleep(1.5 if os.environ['LOCAL_RANK'] == '0' else 0)\n"
        "tell(UserError('bad input'))\n"
        "sys.exit(2)\n"
    )
    done = launch(processes=2, program=[program])
    assert done.returncode != 0
    assert done.stderr.count("distvae: bad input\n") == 1
