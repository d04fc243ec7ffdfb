"""What is done with a run whose train is in shards: some of its sentences stand for all, and the user is told."""

import json

import pytest
from pyarrow import parquet

from distvae import cli
from distvae.train import main


@pytest.fixture(scope="module")
def run(tiny, in_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "large"
    assert main([str(tiny), f"run={folder}", *in_shards]) == 0
    return folder


@pytest.fixture
def sampled(capsys, monkeypatch):
    """Runs a command; returns what it printed, once it is known that it said that 50 sentences stand for all."""
    monkeypatch.setattr("distvae.data.sentences.SAMPLED", 50)

    def run(*arguments):
        capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == 0
        output = capsys.readouterr()
        assert "train: 50 of its 181 sentences, at equal distances, stand for all\n" in output.err
        return output.out

    return run


def test_evaluate(run, sampled):
    found = json.loads(sampled("evaluate", run, "--split", "train", "--json"))
    assert (found["split"], found["scores"]["sentences"]) == ("train", 50)


def test_encode(run, sampled, tmp_path):
    sampled("encode", run, "--out", tmp_path / "z.parquet")
    assert parquet.read_table(tmp_path / "z.parquet")["split"].to_pylist().count("train") == 50


@pytest.mark.parametrize("command", ["sample", "interpolate"])
def test_statistics(run, sampled, command):
    assert sampled(command, run, "--count", 3, "--statistics")


def test_posterior(run, sampled, tmp_path):
    sampled("posterior", run, "--quick", "--out", tmp_path / "posterior.json")
    assert json.loads((tmp_path / "posterior.json").read_bytes())["train"] == 50
