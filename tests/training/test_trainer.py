"""The trainer: the recipe, the best weights, and numbers that are not finite."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from distvae.config.load import load_config
from distvae.model.draws import training_noise
from distvae.train import main
from distvae.training import writer
from distvae.training.plateau import Plateau, Verdict
from distvae.training.step import TrainStep
from tests.compare import equal, numbers, records, weights
from tests.conftest import LANGUAGE_MODEL
from tests.methods.gamma import gamma_of
from tests.runs.epochs import scalars


def leaves(tree, path=""):
    """Pairs of path and value of all that lies in a tree of lists and dictionaries."""
    if isinstance(tree, (list, dict)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def test_stages_follow_the_recipe(finished):
    rows = records(finished)
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 2), ("train", 3), ("train", 4),
    ]  # fmt: skip
    assert [row["kl_weight"] for row in rows[:4]] == [0.0, 0.0, 0.5, 1.0]
    assert [row["verdict"] for row in rows[2:4]] == ["not counted"] * 2


def test_gamma_follows_the_logged_kl(finished, tiny):
    rows = [row for row in records(finished) if row["stage"] == "train"]
    policy = gamma_of(load_config(tiny).kl.policy)
    for row in rows:
        assert row["kl_weight"] == policy.value
        policy.end_epoch(row["train"]["kl"])


def test_pretraining_hands_on_the_encoder_and_not_the_decoder(tiny, tmp_path, monkeypatch):
    starts = {}
    step = TrainStep.__call__

    def spy(self, split, batch, key, *others):
        if key[0] not in starts:
            starts[key[0]] = copy.deepcopy(self.engine.module.state_dict())
        return step(self, split, batch, key, *others)

    monkeypatch.setattr(TrainStep, "__call__", spy)
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "train.max_epochs=1"]) == 0
    pretrained = weights(run, "pretrained")
    for name, start in starts["train"].items():
        assert torch.equal(start, pretrained[name]) == name.startswith("encoder."), name
        bound = 1.0 if "embedding" in name else 0.3
        assert name.startswith("encoder.") or start.abs().max() <= bound


def test_the_best_weights_are_scored(tiny, tmp_path):
    run = tmp_path / "run"
    # A stage that ends by its last decay ends with an epoch that is not its best.
    settings = [
        "kl={policy: linear, anneal_epochs: 2}",
        "train.max_epochs=99",
        "optimizer.learning_rate=1",
        "plateau.patience=1",
        "plateau.max_decays=3",
    ]
    assert main([str(tiny), f"run={run}", *settings]) == 0
    rows = [row for row in records(run) if row["stage"] == "train"]
    assert rows[-1]["verdict"] == "stop"
    counted = [row for row in rows if row["epoch"] > 2]
    best = min(counted, key=lambda row: row["valid"]["neg_elbo"]["mean"])
    end = json.loads((run / "results.json").read_text())["stages"][-1]
    assert end["best_epoch"] == best["epoch"]
    decays = [row["verdict"] for row in counted].count("decay")
    assert decays == 2
    assert rows[-1]["learning_rate"] == 0.5**decays


def test_epochs_that_were_passed_over_are_counted(tiny, tmp_path):
    run = tmp_path / "run"
    swings = ["kl.multiplier=0.9", "kl.threshold=0.01", "plateau.patience=99"]
    for epochs in (12, 13):  # in two starts
        assert main([str(tiny), f"run={run}", f"train.max_epochs={epochs}", *swings]) == 0
    end = json.loads((run / "results.json").read_text())["stages"][-1]
    verdicts = [row["verdict"] for row in records(run) if row["stage"] == "train"]
    assert end["passed_over"] == verdicts[end["best_epoch"] :].count("not counted") == 2


def test_no_best_without_a_kl_in_its_band(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "kl.target_rate=50"]) == 0
    said = capsys.readouterr().out
    assert "WARNING" in said
    assert "qualified as the best" in said
    assert {row["verdict"] for row in records(run) if row["stage"] == "train"} == {"not counted"}
    assert json.loads((run / "results.json").read_text())["stages"][-1]["best_epoch"] is None
    # What lies in best/ are the last weights.
    last = run / "checkpoints" / "latest"
    assert equal(weights(run), load_file(last / "model.safetensors"))


def test_adamw_warms_up_in_each_stage_and_after_each_decay(tiny, tmp_path, monkeypatch):
    def observe(self, loss):
        """Let only the first epoch of a stage improve."""
        if self.best is None:
            self.best = loss
            return Verdict.IMPROVED
        self.learning_rate /= 2
        return Verdict.DECAY

    seen, step = [], TrainStep.__call__

    def spy(self, *arguments):
        seen.append(self.engine.optimizer.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(Plateau, "observe", observe)
    monkeypatch.setattr(TrainStep, "__call__", spy)
    settings = [
        str(tiny), "data.train_size=48",
        "optimizer={name: adamw, learning_rate: 0.01, warmup_steps: 10}", "optimizer.batch_size=8",
        "pretrain.max_epochs=1", "train.max_epochs=4", "kl={policy: constant}", "evaluation.samples=0",
        "checkpoint.every_steps=1", "checkpoint.keep=999",
    ]  # fmt: skip
    whole = tmp_path / "whole"
    assert main([*settings, f"run={whole}"]) == 0
    ramp = [0.01 * number / 10 for number in range(1, 11)]
    expected = [*ramp[:6], *ramp, 0.01, 0.01, *(rate / 2 for rate in ramp[:6]), *(rate / 4 for rate in ramp[:6])]
    assert seen == pytest.approx(expected, rel=1e-12)
    # Within a warm-up of each stage, before its end, and after a decay.
    for number in (3, 10, 20):
        seen.clear()
        (checkpoint,) = whole.glob(f"checkpoints/*step-{number:09d}-*")
        resumed = tmp_path / str(number)
        assert main([*settings, f"run={resumed}", f"resume={checkpoint}"]) == 0
        assert seen == pytest.approx(expected[number:], rel=1e-12)
        assert equal(weights(resumed), weights(whole))


def test_points_within_epochs_change_no_number(finished, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "POINT_SECONDS", 0)
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}"]) == 0
    assert numbers(run) == numbers(finished)
    rows, found = records(run), scalars(run)
    ends = {row["step"] for row in rows}
    for name in ("re", "kl", "kl_weight", "learning_rate", "gradient_norm"):
        steps = [step for step, _ in found[f"step/{name}"]]
        assert len(steps) >= len(rows)  # the first step of an epoch is followed by a sync
        assert not ends & set(steps)
    assert all(row["gradient_norm"] > 0 and row["peak_memory_mb"] > 0 for row in rows)
    norms = [value for _, value in found["control/gradient_norm"]]
    assert norms == pytest.approx([row["gradient_norm"] for row in rows])
    (line,) = (run / "tensorboard").glob("*.hparams")  # of TensorBoard's HPARAMS tab
    assert b"optimizer.learning_rate" in line.read_bytes()


def test_a_language_model_is_trained_by_its_nll(language_model):
    rows = records(language_model)
    assert [(row["stage"], row["epoch"]) for row in rows] == [("train", epoch) for epoch in range(1, 5)]
    for row in rows:
        assert (row["kl_weight"], row["latent"]) == (1.0, None)
        assert (row["train"]["kl"], row["train"]["kl_per_dimension"]) == (0.0, [])
        assert row["train"]["objective"] == row["train"]["re"] > 0
        assert row["valid"]["nll"] == row["valid"]["re"]
    nats = [row["valid"]["nll"]["mean"] for row in rows]
    assert nats == sorted(nats, reverse=True)
    assert all(name.startswith("decoder.") for name in weights(language_model))
    results = json.loads((language_model / "results.json").read_text())
    assert results["scores"]["nll"] == results["scores"]["re"]
    assert results["latent"] is None
    assert not (language_model / "pretrained").exists()


def test_a_language_model_resumes_within_an_epoch(tiny, language_model, tmp_path):
    run = tmp_path / "run"
    settings = [str(tiny), f"run={run}", *LANGUAGE_MODEL, "checkpoint.every_steps=4", "checkpoint.keep=99"]
    assert main(settings) == 0
    (run / "results.json").unlink()
    for later in sorted((run / "checkpoints").glob("start-*"))[4:]:  # steps 4, 8, 11 (an epoch) and 12 stay
        shutil.rmtree(later)
    assert main(settings) == 0
    assert numbers(run) == numbers(language_model)
    assert equal(weights(run), weights(language_model))
    assert (run / "starts").is_dir()
    assert len(list((run / "starts").glob("*.json"))) == 2


def test_an_autoencoder_ends_after_pretraining(tiny, tmp_path):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "train.max_epochs=0"]) == 0
    assert {row["stage"] for row in records(run)} == {"pretrain"}
    assert equal(weights(run), weights(run, "pretrained"))


def test_runs_share_a_pretraining(finished, tiny, tmp_path):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", f"pretrained={finished}"]) == 0
    # The same encoder and the same draws: the same training as in the run that pretrained it.
    assert records(run)[0]["train"]["re"] == records(finished)[2]["train"]["re"]
    assert equal(weights(run), weights(finished))


@pytest.mark.parametrize("form", ["none", "dimension", "sentence_dimension", "sentence", "batch"])
def test_accumulation_changes_no_form_of_free_bits(tiny, tmp_path, form):
    runs = []
    for steps in (1, 3):
        run = tmp_path / str(steps)
        overrides = [f"optimizer.accumulation_steps={steps}", "pretrain.max_epochs=0", "train.max_epochs=2"]
        method = [f"kl={{policy: constant, free_bits: {form}, target_rate: {4.0 if form == 'none' else 1}}}"]
        assert main([str(tiny), f"run={run}", *overrides, *method]) == 0
        runs.append(run)
    one, other = map(weights, runs)
    assert all(torch.allclose(one[name], other[name], atol=2e-6) for name in one)
    assert records(runs[0])[-1]["train"]["objective"] == pytest.approx(records(runs[1])[-1]["train"]["objective"])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_draws_once_whatever_its_micro_batches(tiny, tmp_path, monkeypatch, steps):
    drawn, real = [], training_noise
    monkeypatch.setattr("distvae.model.draws.training_noise", lambda *given: drawn.append(given) or real(*given))
    overrides = [f"optimizer.accumulation_steps={steps}", "pretrain.max_epochs=0", "train.max_epochs=1"]
    assert main([str(tiny), f"run={tmp_path / 'run'}", *overrides]) == 0
    assert len(drawn) == 11


def test_bf16_trains_close_to_float32(finished, tiny, tmp_path):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "optimizer.mixed_precision=bf16"]) == 0
    pairs = list(zip(records(run), records(finished), strict=True))
    assert all(one["train"]["re"] == pytest.approx(other["train"]["re"], rel=0.01) for one, other in pairs)
    assert any(one["train"]["re"] != other["train"]["re"] for one, other in pairs)
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


@pytest.mark.parametrize(
    ("launcher", "given", "expected"),
    [
        (None, [], ("no", "no")),
        ("bf16", [], ("bf16", "bf16")),
        (None, ["optimizer.mixed_precision=bf16"], ("bf16", "bf16")),
        ("bf16", ["optimizer.mixed_precision=no"], ("no", "no")),
        ("bf16", ["evaluation.mixed_precision=no"], ("bf16", "no")),
        (None, ["evaluation.mixed_precision=bf16"], ("no", "bf16")),
    ],
)
def test_an_evaluation_is_in_the_trainings_precision_unless_it_is_said(
    tiny, tmp_path, monkeypatch, launcher, given, expected
):
    """So it stands in the run's config, and in that of what it exports."""
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "pretrain.max_epochs=1", "train.max_epochs=0", *given]) == 0
    for written in (run / "config.yaml", run / "best" / "config.yaml"):
        config = load_config(written)
        assert (config.optimizer.mixed_precision, config.evaluation.mixed_precision) == expected


# The slower ways.
PLAIN = ["speed.output_layer=plain", "speed.embedding_gradients=dense"]


@pytest.mark.parametrize("ways", [PLAIN[:1], PLAIN[1:], PLAIN], ids=" ".join)
def test_faster_ways_come_to_the_same_numbers(finished, tiny, tmp_path, ways):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", *ways]) == 0
    assert not equal(weights(run), weights(finished))  # which took the faster ones
    found, expected = (
        dict(leaves([numbers(folder), json.loads((folder / "results.json").read_text())])) for folder in (run, finished)
    )
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        # A difference of two scores is as exact as these are.
        close = pytest.approx(value, rel=1e-5, abs=2e-6) if isinstance(value, float) else value
        assert found[path] == close, path
