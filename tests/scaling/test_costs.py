"""What a step sends, against what torch sends; the cost model, against times worked out by hand."""

import json
import re
import shlex
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distvae import train
from distvae.cli import main
from distvae.config.kl import KLConfig
from distvae.config.load import load_config
from distvae.config.schema import Config, ModelConfig
from distvae.distributed.runtime import Runtime
from distvae.model import draws
from distvae.model.vae import TextVAE
from distvae.scaling.costs import (
    ASSUMED,
    ENGINES,
    Collective,
    Gradient,
    Machine,
    Network,
    Work,
    count_work,
    ddp_buckets,
    epoch_collectives,
    fit_compute,
    fit_network,
    method_collectives,
    powersgd_sizes,
    predict,
    step_collectives,
)
from distvae.system.errors import UserError
from tests.conftest import ROOT, launch

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


@pytest.mark.parametrize("sizes", [SMALL, ModelConfig(), replace(SMALL, dropout=0.0, word_dropout=0.0)])
def test_draws_are_those_of_a_training_step(sizes):
    noise = draws.training_noise(sizes, slice(0, 1), 1, 7, torch.device("cpu"), 0)
    drawn = (noise.latent, noise.keep_words, noise.keep_embeddings, noise.keep_outputs)
    assert count_work(sizes, 50, 7).draws == sum(values.numel() for values in drawn if values is not None)


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
    "zero2": [("zero2", 3, 300, []), ("zero2", 3, 801, ODD)],
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
    done = launch(str(path), *words, processes=2, engine=launch_file, program=["-m", "tests.distributed.sends"])
    assert done.returncode == 0, done.stderr
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
        {"policy": "linear", "free_bits": "dimension"},
        {"policy": "linear", "free_bits": "batch"},
        {"policy": "linear", "free_bits": "sentence"},
    ],
    ids=lambda kl: kl.get("free_bits", "soft"),
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
    for c in method_collectives(config):
        # The last interval of soft free bits takes what is left.
        expected[c.bytes] += int(steps * c.per_step)
    sums, scores, information = epoch_collectives(config.model, 20)
    expected[sums.bytes] += 1
    for c in (scores, information):
        expected[c.bytes] += 2  # validation, test
    expected[8 * 20] += 1  # the floor of the test's captions
    assert seen == expected


# -- The cost model ----------------------------------------------------------------------------------------------------

WORK = Work((Gradient("a", (300, 100)), Gradient("b", (300, 100))), flops=1000, draws=10)


def test_a_ring_passes_an_all_reduce_around_twice():
    network = Network(latency=2.0, bandwidth=100.0)
    assert network.seconds("all_reduce", 800, 4) == 2 * 3 * 2.0 + 2 * (3 / 4) * 800 / 100
    assert network.seconds("all_gather", 800, 4) == network.seconds("reduce_scatter", 800, 4) == 3 * 2.0 + 6.0
    assert network.seconds("all_reduce", 800, 1) == 0


def test_two_levels_add_up():
    machine = Machine(1.0, 0.0, 1.0, per_node=4, inside=Network(1.0, 100.0), across=Network(10.0, 50.0))
    message = Collective("gradients", "all_reduce", 800)
    # Reduce-scatter and all-gather inside, each 3 · 1 + 3/4 · 800/100; across 2 nodes 2 · 10 + 800/50.
    assert machine.seconds(message, 8) == 2 * (3 + 6) + 20 + 16
    assert machine.seconds(message, 2) == 2 * (1 + 4)
    with pytest.raises(UserError, match="6 processes fill no whole number of nodes of 4"):
        machine.seconds(message, 6)


def test_a_predicted_step_is_what_adds_up_by_hand():
    # Two of them a second each way over a ring of two; a sentence: 1 s of arithmetic, 0.5 s of draws on every process.
    machine = Machine(1000.0, 6.0, 20.0, per_node=1, inside=Network(0, 1.0), across=Network(0.0, 100.0))
    sent = [
        Collective("early", "all_reduce", 1200, overlaps=True),  # 12 s
        Collective("late", "all_gather", 400),  # 2 s
        Collective("now and then", "all_reduce", 800, per_step=1 / 8),  # 8 s
    ]
    found = predict(WORK, sent, machine, processes=2, batch=6)
    assert found.communication == 12 + 2 + 1
    # 6 + 3 · 1 of arithmetic, 6 · 0.5 of draws; two thirds of the 9 can hide 6 of the 12.
    assert found.step == (9 + 3 + 3 + 6, 9 + 3 + 3 + 12)
    assert predict(WORK, sent, machine, processes=2, batch=1).step is None
    # An odd batch takes as long as its larger half.
    assert predict(WORK, sent, machine, processes=2, batch=5).step == found.step


seconds = st.floats(1e-6, 1e-1)


@given(
    st.sampled_from(list(ENGINES)), st.sampled_from([8, 64, 512]), seconds, seconds, st.sampled_from([1e10, 1e12, 1e15])
)
def test_from_the_least_batch_on_sending_takes_its_share(engine, processes, overhead, latency, flops):
    work = Work((Gradient("a", (3000, 100)), Gradient("b", (3000, 100))), flops=10**8, draws=5000)
    machine = replace(ASSUMED, step_overhead=overhead, flops=flops, across=Network(latency, 1e9))
    sent = step_collectives(work, engine, processes)
    silent = replace(machine, inside=Network(0, float("inf")), across=Network(0, float("inf")))

    def shares(batch):
        step = predict(work, sent, machine, processes, batch).step
        quiet = predict(work, sent, silent, processes, batch).step
        return [1 - without / whole for without, whole in zip(quiet, step, strict=True)]

    least = predict(work, sent, machine, processes, processes).least_batch
    for which, batch in enumerate(least):
        assert batch % processes == 0
        assert shares(batch)[which] <= 0.1 + 1e-9
        if batch > processes:
            assert shares(batch - processes)[which] > 0.1 - 1e-9


def test_the_last_bucket_waits_for_the_backward():
    work = count_work(ModelConfig(), 12_372, 2)
    for engine, overlapping in {
        "ddp": [True, False],
        "bf16": [True, False],
        "powersgd": [False] * 3,
    }.items():
        assert [c.overlaps for c in step_collectives(work, engine, 8)] == overlapping
    for engine in ("local_sgd", "zero1", "zero2", "zero3", "fsdp2"):
        assert not any(c.overlaps for c in step_collectives(work, engine, 8))


# -- Fits --------------------------------------------------------------------------------------------------------------


def test_fits_find_the_constants_that_made_the_times():
    network = Network(latency=3e-4, bandwidth=2e8)
    found = fit_network({size: network.seconds("all_reduce", size, 4) for size in (1024, 2**16, 2**22)}, 4)
    assert found.latency == pytest.approx(3e-4)
    assert found.bandwidth == pytest.approx(2e8)
    flops, overhead = fit_compute({each: 0.05 + each * WORK.flops / 2e5 for each in (1, 4, 16)}, WORK)
    assert flops == pytest.approx(2e5)
    assert overhead == pytest.approx(0.05)


def test_times_that_do_not_grow_are_no_ring():
    with pytest.raises(UserError, match="all-reduce times do not grow"):
        fit_network({1024: 1.0, 2**22: 0.5}, 2)


# -- The command -------------------------------------------------------------------------------------------------------


def test_the_command_gives_plain_values(capsys):
    arguments = ["optimizer.batch_size=64", "kl.every_steps=10", "--vocabulary", "300", "--processes", "2,8", "--json"]
    assert main(["scaling", SNLI, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    config = Config(kl=KLConfig(every_steps=10))
    work = count_work(ModelConfig(), 300, 9)
    assert sum(g["bytes"] for g in found["gradients"]) == work.bytes
    assert len(found["predictions"]) == 2 * len(ENGINES)
    for row in found["predictions"]:
        sent = step_collectives(work, row["engine"], row["processes"]) + method_collectives(config)
        expected = predict(work, sent, ASSUMED, row["processes"], 64)
        assert row["step"] == pytest.approx(expected.step)
        assert row["least_batch"] == list(expected.least_batch)


def test_the_command_takes_the_machine_that_it_is_told(capsys):
    machine = "--tflops 0.5 --overhead-ms 20 --gdraws 0.25 --per-node 1 --latency-us 50 --bandwidth-gbps 8"
    machine += " --inside-latency-us 7 --inside-bandwidth-gbps 80"
    assert main(["scaling", SNLI, "--vocabulary", "300", "--json", *machine.split()]) == 0
    told = Machine(0.5e12, 0.02, 0.25e9, 1, inside=Network(7e-6, 1e10), across=Network(50e-6, 1e9))
    found = json.loads(capsys.readouterr().out)["machine"]
    assert Machine(**found | {key: Network(**found[key]) for key in ("inside", "across")}) == told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml", "--vocabulary", "300"], "nowhere.yaml"),
        ([SNLI, "--vocabulary", "2"], "--vocabulary 2"),
        ([SNLI, "--vocabulary", "300", "--tokens", "0"], "--tokens 0"),
        ([SNLI, "--vocabulary", "300", "--processes", "8,0"], "--processes 0"),
        ([SNLI, "--vocabulary", "300", "--processes", "12"], "12 processes fill no whole number of nodes of 8"),
        ([SNLI, "--vocabulary", "300", "--bandwidth-gbps", "0"], "--bandwidth-gbps 0"),
        ([SNLI, "--vocabulary", "300", "--latency-us", "-1"], "--latency-us -1"),
        ([SNLI, "--vocabulary", "300", "--tflops", "nan"], "--tflops nan"),
    ],
)
def test_bad_input_gets_one_line(capsys, arguments, words):
    assert main(["scaling", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("distvae: ")
    assert line.count("\n") == 1
    assert words in line


PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^```\n\$ distvae (scaling .*)\n((?:.*\n)*?)```$", PAGE, flags=re.MULTILINE)


def test_the_page_shows_tables():
    assert len(SHOWN) >= 3


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_page_shows_what_the_command_prints(capsys, monkeypatch, command, output):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    printed = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    if output.startswith("…\n"):  # a tail, from the beginning of a line
        assert printed.endswith(output.removeprefix("…"))
    else:
        assert output == printed
