"""The tables of `distvae posterior`."""

from dataclasses import replace

import pytest

from distvae.evaluation.aggregate import Divergence
from distvae.evaluation.scores import Estimate
from distvae.reports import aggregate, comparison
from distvae.runs.aggregate import AggregatePosterior, Bound, Draws


def each(mean: float) -> Estimate:
    return Estimate(mean, 0.0123)


FOUND = AggregatePosterior(
    split="test", seed=0, model="", sentences=500, train=10_000, components=10,
    divergence=Divergence(
        each(4), each(3), each(0.25), each(0.75), (each(0.05), each(0.4), each(0.1), each(0.2)), each(1), each(0.9)
    ),
    closer=each(0.125),
    draws={
        "posterior": Draws(500, Estimate(0.01, 0.0), each(5)), "prior": Draws(500, each(0.0612), each(6)),
        "mixture": Draws(500, each(0.03), each(7)), "prior, far": Draws(0, None, None),
        "prior, near": Draws(500, None, each(8)), "sentences": Draws(500, None, each(9)),
    },
    nll={
        "prior": (Bound(1, each(19), 1.0), Bound(5, each(18.5), 2.55)),
        "mixture": (Bound(1, each(18.8), 1.0), Bound(5, each(18.4), 3.25)),
    },
    gain=each(0.1),
)  # fmt: skip


@pytest.fixture
def printed(capsys):
    def run(found):
        comparison.show_parts(aggregate.parts(found))
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return run


def test_the_tables(printed):
    lines = printed(FOUND)
    assert lines[2:9] == [
        "KL(q(z|x)‖p) 4.00 ± 0.01",
        "mutual information 3.00 ± 0.01",
        "total correlation 0.25 ± 0.01",
        "Σ KL(q(z_d)‖p(z_d)) 0.75 ± 0.01",
        "of dimension 1 0.40 ± 0.01",
        "of dimension 3 0.20 ± 0.01",
        "of dimension 2 0.10 ± 0.01",
    ]
    assert "KL(q(z)‖p) − KL(q(z)‖mixture) 0.12 ± 0.01" in lines
    start = next(i for i, line in enumerate(lines) if line.startswith("draws of z"))
    assert lines[start : start + 8] == [
        "draws of z number far from q(z), in % PPL of their sentences",
        lines[start + 1],
        "posterior, test 500 1.0 ± 0.0 5.00 ± 0.01",
        "prior 500 6.1 ± 1.2 6.00 ± 0.01",
        "those far 0 –",
        "the others 500 8.00 ± 0.01",
        "mixture 500 3.0 ± 1.2 7.00 ± 0.01",
        "sentences of test 500 9.00 ± 0.01",
    ]
    assert lines[-4:] == [
        lines[-4],
        "K = 1 19.00 ± 0.01 1.0 18.80 ± 0.01 1.0",
        "K = 5 18.50 ± 0.01 2.5 18.40 ± 0.01 3.2",
        "NLL under the prior − NLL under the mixture as the prior: 0.10 ± 0.01",
    ]


def test_an_autoencoder_has_no_column_of_the_prior(printed):
    lines = printed(replace(FOUND, nll={"mixture": FOUND.nll["mixture"]}, gain=None))
    assert "NLL from K samples mixture effective" in lines
    assert lines[-1] == "K = 5 18.40 ± 0.01 3.2"


def test_what_was_left_out_has_no_column(printed):
    draws = {kind: replace(found, forward_ppl=None) for kind, found in FOUND.draws.items() if kind != "sentences"}
    lines = printed(replace(FOUND, draws=draws, nll=None, gain=None))
    assert "draws of z number far from q(z), in %" in lines
    assert lines[-2] == "mixture 500 3.0 ± 1.2"
    assert "PPL" not in "".join(lines)
