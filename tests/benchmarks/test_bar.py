"""Ratios to the textbook within one run, with bars well below those of an idle machine."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distvae.config.schema import ModelConfig
from distvae.distributed.device import has_bf16
from tests.benchmarks import starts
from tests.benchmarks.__main__ import compare, show
from tests.benchmarks.ceilings import Ceilings, Phase, importance_sampling, training_step
from tests.benchmarks.contestants import PARTS, prepare
from tests.benchmarks.textbook import TextbookVAE
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return compare(prepare(tmp_path_factory.mktemp("benchmark"), (), sentences=4), [32], rounds=5)


@pytest.mark.long
def test_training_is_not_slower_than_it_was(found, capsys):
    show(found)
    contestants = found["training"][0]["contestants"]
    assert contestants["float32"]["ratio"][1] > 0.8
    if has_bf16(torch.device("cpu")):
        assert contestants["bf16"]["ratio"][1] > 1.4
    for name in contestants.keys() - {"textbook"}:
        parts = contestants[name]["parts"]
        assert set(parts) == set(PARTS)
        assert min(parts.values()) >= 0
        assert parts["data"] < 0.05 * sum(parts.values())
    said = capsys.readouterr().out
    assert "of the ceiling" in said
    assert "communication, ms" in said
    (sent,) = found["communication"]
    assert (sent["batch_size"], sent["processes"]) == (32, 2)
    assert sent["sending"] == pytest.approx(sent["alone"] + sent["communication"])
    assert 0 < sent["alone"] < sent["sending"] < 10


@pytest.mark.long
def test_scoring_is_not_slower_than_it_was_and_scores_the_same(found):
    contestants = found["scoring"]["contestants"]
    assert contestants["float32"]["ratio"][1] > 0.8
    if has_bf16(torch.device("cpu")):
        assert contestants["bf16"]["ratio"][1] > 1.4
        assert contestants["bf16"]["nll"] == pytest.approx(contestants["float32"]["nll"], abs=0.05)


@pytest.mark.long
def test_nothing_starts_more_slowly_than_it_did(tmp_path, capsys):
    """In processor time, which depends less on other work on the machine."""
    found = starts.measure(starts.starts(tmp_path, sweep=False), rounds=3)
    starts.show(found)
    ratios = {name: start["processor_ratio"][1] for name, start in found["starts"].items()}
    assert ratios["distvae --help"] < 0.4
    assert ratios["import distvae.train"] < 0.6
    assert ratios["distvae sample RUN"] < 1.8
    assert ratios["first training step"] < 3.5
    first = ("first line of distvae train", "first line under accelerate launch")
    assert [found["starts"][name]["ratio"][1] < bar for name, bar in zip(first, (0.6, 1.5), strict=True)] == [True] * 2
    assert "import torch" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("growth", ["--quick", "--sentences", "2000"]), ("sharing", ["--together", "1,2", "--rounds", "1"])],
)
def test_the_other_benchmarks_measure(name, arguments, tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments, "--out", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(found.read_text())


def test_the_floor_is_what_each_piece_of_work_takes_at_the_least():
    limits = Ceilings(float32=10.0, bfloat16=100.0, bandwidth=5.0, launch=0.0)
    works = [Phase("a", operations=200.0, bytes=50.0), Phase("b", operations=0.0, bytes=10.0)]
    assert limits.floor(works, bf16=False) == 20 + 2
    assert limits.floor(works, bf16=True) == 10 + 2


def test_operations_are_counted_as_torch_counts_them():
    sizes = ModelConfig(embedding_size=6, hidden_size=10, latent_size=4)
    sentences, steps, vocabulary_size = 3, 5, 50
    model = TextbookVAE(sizes, vocabulary_size, 0)
    with FlopCounterMode(display=False) as counter:
        model.output(torch.zeros(sentences * steps, 10)).sum().backward()
    works = {work.name: work for work in training_step(sizes, vocabulary_size, sentences, steps, bf16=False)}
    counted = sum(work.operations for name, work in works.items() if name.startswith("output"))
    # The gradient of an input that needs none is not computed there.
    assert counted == counter.get_total_flops() * 3 / 2
    lstm = 2 * (6 + 4 + 10) * 40 * sentences * steps
    assert works["decoder LSTM, forward"].operations == lstm
    assert works["decoder LSTM, backward"].operations == 2 * lstm
    scoring = {w.name: w for w in importance_sampling(sizes, vocabulary_size, sentences, 1, steps, bf16=False)}
    assert scoring["LSTM"].operations == lstm
    assert scoring["output"].operations == works["output, forward"].operations


@pytest.mark.long
def test_the_run_for_a_gpu_rehearses(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (done.returncode, found["failed"]) == (0, {}), done.stdout
    assert list(found["seconds"]) == ["tests", "comparison", "scoring", "sharing", "profile"]
    page = (tmp_path / "gpu.md").read_text()
    for words in ("| training at batch 8, × textbook |", "| scoring, × textbook |", "| 2 trainings together, × 1 |"):
        assert words in page
    assert "| 8 | float32 |" in page
    assert done.stdout.endswith(page)
