"""The gradients, operations and messages of a step, against those of torch."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from distvae import train
from distvae.config.load import load_config
from distvae.config.schema import ModelConfig
from distvae.distributed.runtime import Runtime
from distvae.model import draws
from distvae.model.vae import TextVAE
from scaling.costs import (
    Gradient,
    count_work,
    ddp_buckets,
    epoch_collectives,
    method_collectives,
    powersgd_sizes,
    step_collectives,
)
from tests.conftest import ROOT, fork
from tests.distributed.test_engines import TOLD

SNLI = str(ROOT / "configs" / "snli" / "pt_kla_sfb.yaml")
SMALL = ModelConfig(embedding_size=6, hidden_size=10, latent_size=4, word_dropout=0.1)


def gradients(*sizes):
    return [Gradient(str(i), (size // 4,)) for i, size in enumerate(sizes)]


# -- Counting ----------------------------------------------------------------------------------------------------------


def test_every_weight_has_its_gradient_once():
    with torch.device("meta"):
        model = TextVAE(SMALL, 50, 0, 1)
    work = count_work(SMALL, 50, 7)
    assert {g.name: g.shape for g in work.gradients} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert len(work.gradients) == len(list(model.parameters()))
    assert work.bytes == 4 * sum(p.numel() for p in model.parameters())


def test_gradients_come_from_the_output_backwards():
    names = [g.name for g in count_work(SMALL, 50, 7).gradients]
    assert names[0] == "decoder.output.weight"
    assert names[-1] == "encoder.embedding.weight"


@pytest.mark.parametrize(("sizes", "vocabulary_size", "tokens"), [(SMALL, 50, 7), (ModelConfig(), 5814, 9)])
def test_operations_are_those_of_the_matrix_products(sizes, vocabulary_size, tokens):
    e, h, m = sizes.embedding_size, sizes.hidden_size, sizes.latent_size
    encoder = (tokens + 1) * (e + h) * 4 * h + h * 2 * m
    decoder = m * h + tokens * ((e + m + h) * 4 * h + h * vocabulary_size)
    # Each product costs a multiplication and an addition, and twice as much again in the backward; but nobody asks for
    # the gradient of the encoder's first state, which is 0.
    assert count_work(sizes, vocabulary_size, tokens).flops == 6 * (encoder + decoder) - 2 * h * 4 * h


@pytest.mark.parametrize("sizes", [SMALL, ModelConfig(), replace(SMALL, dropout=0.0, word_dropout=0.0, posterior="du")])
def test_draws_are_those_of_a_training_step(sizes):
    noise = draws.training_noise(sizes, slice(0, 1), 1, 7, torch.device("cpu"), 0)
    drawn = sum(values.numel() for values in vars(noise).values() if values is not None)
    assert count_work(sizes, 50, 7).draws == drawn


@pytest.mark.parametrize("enabled", [True, False])
def test_counting_leaves_onednn_as_it_was(enabled):
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.set_flags(_enabled=enabled)
    try:
        count_work(SMALL, 50, 2)
        assert torch.backends.mkldnn.enabled == enabled
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


# -- What is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((40, 40, 400, 40), [2, 1, 1]),  # each but the last is filled to its brim
        ((76, 40, 240, 160, 40), [2, 2, 1]),  # … and may overfill it
        ((400, 8), [1, 1]),
        ((8,), [1]),
    ],
)
def test_a_bucket_ends_with_the_gradient_that_fills_it(sizes, expected):
    assert [len(bucket) for bucket in ddp_buckets(gradients(*sizes), first=80, limit=400)] == expected


def test_powersgd_leaves_whole_what_its_factors_would_not_halve():
    matrices = [Gradient("bias", (64,)), Gradient("wide", (64, 512)), Gradient("small", (16, 16))]
    # (64 + 512) · 4 · 2 < 64 · 512; (16 + 16) · 4 · 2 = 16 · 16.
    assert powersgd_sizes(matrices, 4) == (64 + 256, 64 * 4, 512 * 4)
    assert powersgd_sizes(matrices, 3) == (64, 64 * 3 + 16 * 3, 512 * 3 + 16 * 3)
    assert powersgd_sizes(matrices, 1000) == (64 + 64 * 512 + 256, 0, 0)


ODD = ["model.embedding_size=125", "model.hidden_size=511", "model.latent_size=31"]
POWERSGD = ["compression=powersgd", "powersgd_start=2", "powersgd_rank=3"]
# What a launch file's processes train: engine, messages of a step, vocabulary, settings.
TRAININGS = {
    "cpu": [
        ("ddp", 2, 3000, []),
        ("ddp", 2, 300, []),  # the first bucket ends within the decoder's LSTM
        ("bf16", 2, 3000, ["communication.compression=bf16"]),
        ("powersgd", 3, 3000, [f"communication.{setting}" for setting in POWERSGD]),
        ("local_sgd", 1, 300, ["communication.local_sgd_steps=4"]),
    ],
    "fsdp2": [("fsdp2", 4, 300, []), ("fsdp2", 4, 301, ODD)],
    # The embeddings of 800 words are 100,000 values, and those of 801 an odd number.
    "zero1": [("zero1", 3, 300, []), ("zero1", 3, 801, ODD)],
    "zero2": [("zero1", 3, 300, []), ("zero1", 3, 801, ODD)],
    "zero3": [("zero3", 12, 800, ODD), ("zero3", 10, 801, ODD)],
}


# All of a launch in one test, for starting processes takes longer than training in them.
@pytest.mark.parametrize(
    "launch_file",
    [pytest.param(name, marks=[pytest.mark.long] if name.startswith("zero") else []) for name in TRAININGS],
)
def test_what_is_predicted_is_what_is_sent(tmp_path, launch_file):
    """Each engine of the page's table, byte by byte, in two processes that train by it."""
    trainings, path = TRAININGS[launch_file], tmp_path / "sent.json"
    words = [
        word
        for _, _, vocabulary_size, settings in trainings
        for word in ("--", str(vocabulary_size), SNLI, "cpu_threads=1", *settings)
    ]
    program = {"program": "tests.distributed.sends", "runs": [[str(path), *words]]}
    codes, told = fork(tmp_path, [{"processes": 2, "environment": TOLD[launch_file], **program}])
    assert codes == [[0, 0]], told
    for training, sent in zip(trainings, json.loads(path.read_text()), strict=True):
        engine, messages, vocabulary_size, settings = training
        config = load_config(SNLI, settings)
        work = count_work(config.model, vocabulary_size, 5)
        predicted = step_collectives(work, engine, 2, config.communication)
        assert len(predicted) == messages, training
        assert over_gloo(predicted) == Counter(map(tuple, sent)), training


def over_gloo(collectives):
    """Gloo has no reduce-scatter: torch makes it an all-reduce there."""
    return Counter(("all_gather" if c.kind == "all_gather" else "all_reduce", c.bytes) for c in collectives)


@pytest.mark.parametrize(
    "kl",
    [
        {"every_steps": 3},
        {"policy": "lagrangian", "anneal_epochs": 10},
        {"policy": "linear", "free_bits": "dimension"},
        {"policy": "linear", "free_bits": "batch"},
        {"policy": "linear", "free_bits": "sentence"},
    ],
    ids=lambda kl: kl.get("free_bits", kl.get("policy", "soft")),
)
def test_a_run_sums_what_is_predicted(tiny, tmp_path, monkeypatch, kl):
    """All that the program itself sums over ranks, in a run of one epoch of 11 steps and 20 validation sentences."""
    seen, real = Counter(), Runtime.sum

    def recorded(runtime, values):
        seen[values.numel() * values.element_size()] += 1
        return real(runtime, values)

    monkeypatch.setattr(Runtime, "sum", recorded)
    settings = [f"kl.{key}={value}" for key, value in kl.items()]
    settings += [
        "pretrain.max_epochs=0",
        "train.max_epochs=1",
        "evaluation.importance_samples=1",
        f"run={tmp_path / 'r'}",
    ]
    assert train.main([str(tiny), *settings]) == 0
    config = load_config(tiny, settings)
    steps = 11
    expected = Counter()
    for c in method_collectives(config, "local_sgd"):
        # The last interval of soft free bits takes what is left.
        expected[c.bytes] += int(steps * c.per_step)
    sums, scores, information = epoch_collectives(config.model, 20)
    expected[sums.bytes] += 1
    for c in (scores, information):
        expected[c.bytes] += 2  # validation, test
    expected[8 * 20] += 1  # the floor of the test's captions
    assert seen == expected
