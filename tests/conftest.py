import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from distvae.train import main

pytest.register_assert_rewrite("tests.compare")

# Models as small as these gain nothing from threads, and several tests run at once.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]

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
def finished(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of the whole recipe. Tests leave it as it is."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main([str(tiny), f"run={run}"]) == 0
    return run


def needs(condition: object, reason: str) -> None:
    """Skip a test where something that it needs is missing; fail it where all is to be there (CI)."""
    if not condition:
        (pytest.fail if os.environ.get("DISTVAE_REQUIRE") == "1" else pytest.skip)(reason)


TRAIN = (str(ROOT / "distvae" / "train.py"),)


def launch(
    *arguments: str, processes: int = 1, program: Sequence[str] = TRAIN, **environment: str
) -> subprocess.CompletedProcess:
    """Run a program as its users do: by ``accelerate launch``, in processes of its own."""
    several = ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--num_processes", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *several]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:
        command += ["--main_process_port", "0"]
    return subprocess.run(
        [*command, *program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
