"""What DDP's options for slow networks do to a training."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from distvae.config.load import load_config
from distvae.data import corpus
from distvae.data.batches import collate, share
from distvae.data.plans import training_plan
from distvae.distributed.engines.replicated import Replicated
from distvae.methods.kl import kl_per_dimension
from distvae.model import draws
from distvae.model.vae import TextVAE, initialise
from distvae.runs import checkpoints
from distvae.train import main
from tests.compare import records
from tests.conftest import fork
from tests.methods.gamma import gamma_of

ONE_STAGE = ["pretrain.max_epochs=0", "train.max_epochs=1", "evaluation.samples=0", "evaluation.importance_samples=1"]
LONGER = ["evaluation.samples=0", "evaluation.importance_samples=1"]
# Wide enough that DDP would cut its gradients into several buckets.
WIDE = ["model.hidden_size=256", "model.embedding_size=64", "model.init_range=0.1"]
RUNS = {
    "local_1": [*ONE_STAGE, "optimizer.clip_norm=null", "communication.local_sgd_steps=1"],
    "local_4": [*ONE_STAGE, "optimizer.clip_norm=2.0", "communication.local_sgd_steps=4"],
    "plain": LONGER,
    "bf16": [*LONGER, "communication.compression=bf16"],
    "decays": [
        *LONGER,
        "pretrain.max_epochs=0",
        "train.max_epochs=8",
        "kl={policy: constant}",
        "optimizer.learning_rate=1",
        "optimizer.clip_norm=null",
        "plateau.patience=1",
        "checkpoint.keep=100",
        "communication.compression=powersgd",
        "communication.powersgd_start=2",
    ],
    "powersgd": [*LONGER, "communication.compression=powersgd", "communication.powersgd_start=2"],
    "mdr": [*ONE_STAGE, "kl={policy: lagrangian}"],
    "powersgd_mdr": [
        *ONE_STAGE,
        "kl={policy: lagrangian}",
        "communication.compression=powersgd",
        "communication.powersgd_start=2",
    ],
    "wide": [*ONE_STAGE, *WIDE],
    "wide_powersgd": [*ONE_STAGE, *WIDE, "communication.compression=powersgd", "communication.powersgd_start=2"],
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The runs by two processes."""
    folder = tmp_path_factory.mktemp("communication")
    runs = [[str(tiny), f"run={folder / name}", *options] for name, options in RUNS.items()]
    codes, told = fork(folder, [{"processes": 2, "runs": runs}])
    assert codes == [[0, 0]], told
    return folder


def weights(run):
    return load_file(run / "best" / "model.safetensors")


def distance(here, there):
    return max(float(there[name].sub(value).abs().max()) for name, value in here.items())


def test_local_sgd_of_one_step_without_clipping_is_data_parallelism(runs, tiny, tmp_path):
    options = [word for word in RUNS["local_1"] if not word.startswith("communication")]
    assert main([str(tiny), f"run={tmp_path / 'alone'}", *options]) == 0
    assert distance(weights(tmp_path / "alone"), weights(runs / "local_1")) < 2e-6


def test_local_sgd_is_the_textbooks(runs, tiny):
    """Two models, a share of each batch each, clipped on their own; their mean after steps 4 and 8, and at the end."""
    config = load_config(tiny, RUNS["local_4"])
    data = corpus.load(corpus.prepare(config.data, progress=False))
    model = TextVAE(config.model, len(data.vocabulary), data.vocabulary.pad, data.vocabulary.unknown)
    initialise(model, config.model, draws.generator("cpu", config.seed, "initial weights"))
    models, gamma = [model, copy.deepcopy(model)], gamma_of(config.kl.policy).value

    def average():
        for pair in zip(*(m.parameters() for m in models), strict=True):
            mean = sum(p.detach() for p in pair) / 2
            for p in pair:
                p.data = mean.clone()

    plan = training_plan(data.train.lengths, 8, (config.seed, 1, 1))
    for number, sentences in enumerate(plan, start=1):
        for part, m in enumerate(models):
            batch = collate(data.train, sentences, share(len(sentences), part, 2), data.vocabulary.pad)
            if batch.count == 0:
                continue
            steps = int(data.train.lengths[sentences].max()) - 1
            noise = draws.training_noise(
                config.model, batch.rows, len(sentences), steps, torch.device("cpu"), config.seed, "train", 1, number
            )
            re, mean, log_variance = m(batch.tokens, batch.lengths, noise)
            loss = (re + gamma * kl_per_dimension(mean, log_variance).sum(dim=1)).sum() * 2 / len(sentences)
            m.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(m.parameters(), 2.0)
            with torch.no_grad():
                for p in m.parameters():
                    p -= config.optimizer.learning_rate * p.grad
        if number in (4, 8):
            average()
    average()
    assert distance(models[0].state_dict(), weights(runs / "local_4")) < 2e-6


def test_bf16_gradients_train_to_nearly_the_same(runs):
    apart = distance(weights(runs / "plain"), weights(runs / "bf16"))
    assert 1e-5 < apart < 2e-2  # rounded, and no more than that
    for here, there in zip(records(runs / "plain"), records(runs / "bf16"), strict=True):
        assert there["valid"]["re"]["mean"] == pytest.approx(here["valid"]["re"]["mean"], rel=2e-3)


@pytest.mark.parametrize(("plain", "compressed"), [("plain", "powersgd"), ("wide", "wide_powersgd")])
def test_powersgd_trains(runs, plain, compressed):
    here, there = (records(runs / name) for name in (plain, compressed))
    assert distance(weights(runs / plain), weights(runs / compressed)) > 1e-5
    assert there[-1]["train"]["re"] == pytest.approx(here[-1]["train"]["re"], rel=0.03)
    if len(there) > 1:
        assert there[-1]["valid"]["re"]["mean"] < there[0]["valid"]["re"]["mean"] - 5


def test_the_kl_of_each_step_is_carried_beside_compressed_gradients(runs):
    (plain,), (compressed,) = (records(runs / name) for name in ("mdr", "powersgd_mdr"))
    assert distance(weights(runs / "mdr"), weights(runs / "powersgd_mdr")) > 1e-5
    assert plain["kl_weight"] != 0
    assert compressed["kl_weight"] == pytest.approx(plain["kl_weight"], rel=0.05)


def test_powersgd_forgets_what_it_left_out_of_the_gradients_of_other_weights(runs):
    """When best weights come back."""
    run = runs / "decays"
    kept = {}
    for folder in checkpoints.list_checkpoints(run):
        saved = checkpoints.load_checkpoint(folder)
        if saved.state.batches == 0:
            kept[saved.state.epoch] = "powersgd.error" in saved.ranks
    verdicts = {row["epoch"]: row["verdict"] for row in records(run)}
    assert "decay" in verdicts.values()
    assert kept == {epoch: verdict not in ("decay", "stop") for epoch, verdict in verdicts.items()}


def test_an_average_leaves_the_weights_where_they_are():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        lstm = torch.nn.LSTM(3, 4)
        engine = Replicated.__new__(Replicated)
        engine._model = lstm
        before = {name: (p.data_ptr(), p.detach().clone()) for name, p in lstm.named_parameters()}
        engine._average()
    finally:
        dist.destroy_process_group()
    for name, p in lstm.named_parameters():
        place, value = before[name]
        assert p.data_ptr() == place
        assert torch.equal(p, value)


def test_a_run_says_by_what_it_trains(runs):
    told = {name: json.loads((runs / name / "environment.json").read_text())["processes"] for name in RUNS}
    assert told["plain"] == "2 processes by DDP"
    assert told["bf16"] == "2 processes by DDP, bf16"
    assert told["local_4"] == "2 processes by local SGD, 4 steps"
