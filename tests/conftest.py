import functools
import gc
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from distvae import cli
from distvae.data import captions
from distvae.train import main

pytest.register_assert_rewrite("tests.compare")

# Models as small as these gain nothing from threads, and several tests run at once.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]

# Seconds for what a test waits for. Only a failing test waits as long, and a busy machine may be many times slower.
PATIENCE = 900

# A run of seconds whose encoder learns to speak: every stage, dropout on, a partial batch of one sentence.
TINY = """
data: {path: captions, train_size: 81, valid_size: 20, test_size: 20}
model:
  {embedding_size: 12, hidden_size: 16, latent_size: 4, init_range: 0.3, embedding_init_range: 1.0, word_dropout: 0.2}
optimizer: {batch_size: 8, learning_rate: 0.1}
pretrain: {max_epochs: 2}
train: {max_epochs: 4}
kl: {anneal_epochs: 2, target_rate: 0.3}
evaluation: {importance_samples: 10, samples: 2}
cpu_threads: 1
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Where all tests keep their tokenised sentences."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(cache, tmp_path_factory) -> Path:
    """A config file of a run of seconds."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(TINY.replace("test_size: 20}", f"test_size: 20, cache: {cache}}}"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def in_shards(tmp_path_factory) -> list[str]:
    """Settings that make ``tiny`` train on a corpus in shards of 8: an epoch has two groups, of 16 and 7 batches."""
    folder = tmp_path_factory.mktemp("large")
    for number, (split, size) in enumerate({"train": 200, "valid": 20, "test": 20}.items()):
        lines = (" ".join(words) + "\n" for words in captions.generate(size, (5, number)))
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return [f"data.path={folder}", "data.train_size=181", "data.shard_size=8", "data.min_count=1"]


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of the whole recipe. Tests leave it as it is."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main([str(tiny), f"run={run}"]) == 0
    return run


# Settings that make ``tiny`` a language model.
LANGUAGE_MODEL = ["model.latent_size=0", "pretrain.max_epochs=0", "kl={policy: constant}"]


@pytest.fixture(scope="session")
def language_model(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run without a latent variable. Tests leave it as it is."""
    run = tmp_path_factory.mktemp("runs") / "language_model"
    assert main([str(tiny), f"run={run}", *LANGUAGE_MODEL]) == 0
    return run


@pytest.fixture
def said(capsys):
    """Runs a command of ``distvae`` in this process; returns what it printed: its errors if it is to fail."""

    def run(*arguments, code=0):
        capsys.readouterr()
        try:
            returned = cli.main([str(argument) for argument in arguments])
        except SystemExit as refused:  # by the parser
            returned = refused.code
        assert returned == code
        output = capsys.readouterr()
        return output.err if code else output.out

    return run


def needs(condition: object, reason: str) -> None:
    """Skip a test where something that it needs is missing; fail it where all is to be there (CI)."""
    if not condition:
        (pytest.fail if os.environ.get("DISTVAE_REQUIRE") == "1" else pytest.skip)(reason)


def wait_until(condition: Callable[[], Any], what: str, told: Callable[[], object] = str, every: float = 0.05) -> Any:
    """Wait until a condition is met, and return its value. After ``PATIENCE``, fail with ``what`` and ``told()``."""
    end = time.monotonic() + PATIENCE
    while not (met := condition()):
        assert time.monotonic() < end, f"{what}: not after {PATIENCE} s\n{told()}"
        time.sleep(every)
    return met


def wait_for_file(path: Path) -> None:
    wait_until(path.exists, f"{path} is there")


TRAIN = (str(ROOT / "distvae" / "train.py"),)


def launcher(program: Sequence[str | Path], processes: int = 1, engine: str | None = None) -> list[str]:
    """The command by which users start a program, before the program's arguments.

    ``engine`` is one of launch/accelerate/; without it, as many processes on CPUs by the launcher's own options.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    if engine is not None:
        command += ["--config_file", str(ROOT / "launch" / "accelerate" / f"{engine}.yaml")]
    else:
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--multi_gpu"] if processes > 1 else []
    if engine is not None or processes > 1:
        command += ["--main_process_port", str(free_port())]
    return [*command, *map(str, program)]


def launch(
    *arguments: str,
    processes: int = 1,
    engine: str | None = None,
    program: Sequence[str | Path] = TRAIN,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Run a program as its users do: by ``accelerate launch``, in processes of its own; see ``launcher``."""
    return subprocess.run(
        [*launcher(program, processes, engine), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@functools.cache
def forks() -> tuple[subprocess.Popen, int]:
    """Start tests/distributed/forked.py, which ends with this process. Return it and a file of what it says."""
    said = os.memfd_create("forked")
    # A thread of pyarrow's would be missing in what is forked.
    no_threads = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.forked"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **no_threads},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    return server, said


def fork_each(folder: Path, groups: list[dict]) -> list[list[subprocess.CompletedProcess]]:
    """Run groups of processes by tests/distributed/forked.py. Return what became of each process of each group."""
    output = tempfile.mkdtemp(prefix="output-", dir=folder)
    plan = {"environment": {**os.environ, "OMP_NUM_THREADS": "1"}, "output": output, "groups": groups}
    server, said = forks()
    answer = ""
    try:
        server.stdin.write(json.dumps(plan) + "\n")
        server.stdin.flush()
        if select.select([server.stdout], [], [], PATIENCE)[0]:
            answer = server.stdout.readline()
    finally:
        if not answer:
            server.kill()
            forks.cache_clear()
    assert answer, os.pread(said, 2**20, 0).decode()

    def ended(group: int, rank: int, code: int) -> subprocess.CompletedProcess:
        told = (Path(output, f"{group}-{rank}.{name}").read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(groups[group]["runs"], code, *told)

    return [
        [ended(group, rank, code) for rank, code in enumerate(codes)] for group, codes in enumerate(json.loads(answer))
    ]


def fork(folder: Path, groups: list[dict]) -> tuple[list[list[int]], str]:
    """Run groups of processes by tests/distributed/forked.py: what each exited with, and all that they said."""
    done = fork_each(folder, groups)
    said = "".join(process.stdout + process.stderr for group in done for process in group)
    return [[process.returncode for process in group] for group in done], said


def free_port() -> int:
    """For tests that run side by side: DeepSpeed's launcher finds none by itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# The files of `make test` and of `make test-cluster` that take longest, which begin first: the last to begin would take
# its minutes alone.
LONGEST = (
    "distributed/test_engines.py", "test_train.py", "test_launch.py", "distributed/test_aggressive.py",
    "runs/test_sharing.py", "table/test_machine.py", "distributed/test_batch_norm.py", "runs/test_aggregate.py",
    "runs/test_probed.py", "scaling/test_costs.py",
    "slurm/test_sweep.py", "slurm/test_survival.py", "sweeps/test_searches.py", "sweeps/test_sweeps.py",
    "sweeps/test_interruptions.py", "slurm/test_cluster.py", "faults/test_campaign.py", "slurm/test_table.py",
    "distributed/test_hung.py", "runs/trackers/test_libraries.py", "browser/test_dashboard.py", "test_wheel.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish():
    """Keep what was imported out of garbage collections: each run ends with two, which would look through all of it."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """How far each way to train was from one process, in one table."""
    properties = [report.user_properties for report in terminalreporter.stats.get("passed", [])]
    rows = sorted(value for pairs in properties for name, value in pairs if name == "engine")
    if rows:
        terminalreporter.section("largest difference from one process: nats a sentence in any epoch, and final weights")
        terminalreporter.write_line(f"{'engine':<8}{'processes':>10}{'RE':>12}{'KL':>12}{'−ELBO':>12}{'weights':>12}")
        for engine, processes, *differences in rows:
            cells = "".join(f"{difference:>12.1e}" for difference in differences)
            terminalreporter.write_line(f"{engine:<8}{processes:>10}{cells}")


def pytest_make_parametrize_id(val) -> str | None:
    """Name bytes by their length: workers must collect the same tests, and a gzip header holds the time."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
