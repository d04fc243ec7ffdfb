"""Whole runs of BN-VAE and DU-VAE by one process."""

import json

import pytest
import torch
from safetensors.torch import load_file

from distvae.config.load import load_config
from distvae.reports.methods import method_of
from distvae.runs.checkpoints import load_export
from distvae.train import main
from tests.compare import equal, numbers, records, weights
from tests.conftest import ROOT

BUFFERS = ["encoder.normalise.running_mean", "encoder.normalise.running_variance"]
NORMALISED = ["model.posterior=batch_norm", "evaluation.samples=0", "evaluation.importance_samples=2"]
EVERY = ["checkpoint.every_steps=4", "checkpoint.keep=99"]
RESTLESS = [
    "kl={policy: linear, anneal_epochs: 1}", "optimizer.learning_rate=3", "train.max_epochs=30", "plateau.patience=1",
    "plateau.max_decays=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run whose learning rate decays, and whose best weights come back."""
    folder = tmp_path_factory.mktemp("batch_norm") / "run"
    assert main([str(tiny), f"run={folder}", *NORMALISED, *EVERY, *RESTLESS]) == 0
    return folder


def test_the_best_weights_come_back_with_their_statistics(run):
    row = next(row for row in records(run) if row["verdict"] == "decay")
    (saved,) = (run / "checkpoints").glob(f"*-step-{row['step']:09d}-*")
    now, best = (load_file(saved / name) for name in ("model.safetensors", "best.safetensors"))
    assert equal(now, best)
    (before,) = (run / "checkpoints").glob(f"*-step-{(row['step'] - 1) // 4 * 4:09d}-*")
    assert not any(torch.equal(now[name], load_file(before / "model.safetensors")[name]) for name in BUFFERS)


def test_it_resumes_within_an_epoch_to_the_same_bits(run, tiny, tmp_path):
    (saved,) = (run / "checkpoints").glob("*-step-000000028-*")
    broken = tmp_path / "broken"
    assert main([str(tiny), f"run={broken}", *NORMALISED, *EVERY, *RESTLESS, f"resume={saved}"]) == 0
    assert equal(weights(broken), weights(run))
    found = numbers(broken)
    assert found == numbers(run)[-len(found) :]


def test_its_pretraining_hands_on_the_statistics(run, tiny, tmp_path):
    """Another run with that encoder trains as the run itself did."""
    other = tmp_path / "other"
    assert main([str(tiny), f"run={other}", *NORMALISED, *RESTLESS, f"pretrained={run}"]) == 0
    assert equal(weights(other), weights(run))


def test_an_export_evaluates_by_its_statistics(run):
    model = load_export(run).model()
    tokens = torch.randint(5, 100, (6, 9))
    lengths = torch.full((6,), 9)
    together = model.encoder(tokens, lengths)
    for row, mean in enumerate(together.mean):
        alone = model.encoder(tokens[row : row + 1], lengths[row : row + 1])
        torch.testing.assert_close(alone.mean[0], mean)
    raw = model.encoder.outputs(tokens, lengths)[:, :4]
    exported = weights(run)
    mean, variance, shift = (exported[f"encoder.normalise.{n}"] for n in ("running_mean", "running_variance", "shift"))
    torch.testing.assert_close(together.mean, 0.6 * (raw - mean) / variance.sqrt() + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("posterior", "label"), [("batch_norm", "BN"), ("du", "DU")])
def test_their_labels(tiny, posterior, label):
    settings = [f"model.posterior={posterior}", "model.word_dropout=0", "kl={policy: linear, anneal_epochs: 2}"]
    assert method_of(load_config(tiny, settings)) == f"PT + KLA + {label}"


def ends(config, folder, settings):
    """The results of a run of each posterior."""
    found = {}
    for posterior in ("gaussian", "batch_norm"):
        run = folder / posterior
        assert main([str(config), f"run={run}", *settings, f"model.posterior={posterior}"]) == 0
        found[posterior] = json.loads((run / "results.json").read_text())
    return found


def test_it_keeps_a_kl_where_annealing_alone_collapses(tiny, tmp_path):
    """Under the initial weights of the paper, which put the means of all sentences within 1e-4 of each other."""
    settings = [
        "data.train_size=400", "pretrain.max_epochs=0", "train.max_epochs=4", "kl={policy: linear, anneal_epochs: 2}",
        "model.word_dropout=0", "model.init_range=0.01", "model.embedding_init_range=0.1",
        "optimizer.learning_rate=0.5", "evaluation.samples=0", "evaluation.importance_samples=2",
    ]  # fmt: skip
    found = ends(tiny, tmp_path, settings)
    assert found["gaussian"]["scores"]["mutual_information"]["mean"] < 1e-3
    assert found["gaussian"]["scores"]["kl"]["mean"] < 0.5
    for row in records(tmp_path / "batch_norm"):
        assert row["train"]["kl"] > 0.99 * 4 * 0.6**2 / 2
    assert row["valid"]["mutual_information"]["mean"] > 0.05


@pytest.mark.long
def test_it_lives_where_annealing_alone_collapses(cache, tmp_path):
    settings = [
        f"data.cache={cache}", "data.train_size=2000", "data.valid_size=300", "data.test_size=300", "cpu_threads=1",
        "train.max_epochs=8", "kl.anneal_epochs=4", "evaluation.samples=0", "evaluation.importance_samples=50",
    ]  # fmt: skip
    found = ends(ROOT / "configs" / "demo" / "kla.yaml", tmp_path, settings)
    assert [found[posterior]["latent"]["state"] for posterior in found] == ["dead", "alive"]
    assert found["gaussian"]["scores"]["mutual_information"]["mean"] < 0.1
    assert found["batch_norm"]["scores"]["mutual_information"]["mean"] > 1
