"""On a GPU, where there is one: the same program, in float32 and bf16, alone and on several."""

import json

import pytest
import torch

from distvae.config.schema import ModelConfig
from distvae.model.vae import TextVAE
from tests.compare import assert_same_numbers, records
from tests.conftest import launch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")


@pytest.fixture(scope="module")
def on_gpu(tiny, tmp_path_factory):
    """The run by one process on one GPU."""
    run = tmp_path_factory.mktemp("gpu") / "float32"
    done = launch(str(tiny), f"run={run}", engine="gpu")
    assert done.returncode == 0, done.stderr
    assert "1 process on cuda" in done.stdout
    return run


def test_one_gpu_trains(on_gpu):
    rows = records(on_gpu)
    assert rows[-1]["valid"]["re"]["mean"] < rows[0]["valid"]["re"]["mean"] - 5
    # A CPU scores what it has trained alike: its draws are other ones, so that the standard error is the measure.
    done = launch("evaluate", str(on_gpu), "--json", program=["-m", "distvae.cli"], CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    here, there = json.loads(done.stdout)["scores"], json.loads((on_gpu / "results.json").read_text())["scores"]
    assert there["kl"]["mean"] == pytest.approx(here["kl"]["mean"], rel=1e-4)
    assert abs(there["nll"]["mean"] - here["nll"]["mean"]) < 2 * here["nll"]["standard_error"]


def test_bf16_on_a_gpu_trains_to_nearly_the_same(on_gpu, tiny, tmp_path):
    done = launch(str(tiny), f"run={tmp_path / 'run'}", "optimizer.mixed_precision=bf16", engine="gpu")
    assert done.returncode == 0, done.stderr
    for here, there in zip(records(on_gpu), records(tmp_path / "run"), strict=True):
        assert there["valid"]["re"]["mean"] == pytest.approx(here["valid"]["re"]["mean"], rel=5e-3)


def test_a_small_gradient_is_not_lost_in_bf16():
    """As it would be in float16, in which autocast has cuDNN run an LSTM."""
    torch.manual_seed(0)
    model = TextVAE(ModelConfig(init_range=0.01), 100, pad=0, unknown=1).cuda()
    tokens, lengths = torch.randint(2, 100, (32, 12), device="cuda"), torch.full((32,), 12, device="cuda")
    gradients = []
    for bf16 in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            mean = model.encoder(tokens, lengths).mean
        model.zero_grad()
        (1e-8 * mean.sum()).backward()
        gradients.append(model.encoder.lstm.weight_hh_l0.grad.clone())
    plain, mixed = gradients
    assert (mixed - plain).norm() < 0.02 * plain.norm()


@several
@pytest.mark.parametrize("engine", ["multi_gpu", "zero1", "zero2", "zero3", "fsdp2"])
def test_several_gpus_compute_what_one_does(on_gpu, tiny, tmp_path, engine):
    done = launch(str(tiny), f"run={tmp_path / 'run'}", processes=2, engine=engine)
    assert done.returncode == 0, done.stderr
    assert_same_numbers(on_gpu, tmp_path / "run", 2)


def test_recorded_steps_train_what_steps_do(on_gpu, tiny, tmp_path):
    done = launch(str(tiny), f"run={tmp_path / 'run'}", "speed.cuda_graphs=true", engine="gpu")
    assert done.returncode == 0, done.stderr
    assert_same_numbers(on_gpu, tmp_path / "run", 1)
