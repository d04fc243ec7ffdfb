"""`python -m scaling measure`, alone and in two real processes."""

import json
from dataclasses import asdict

import pytest

from distvae.distributed.runtime import Runtime
from scaling.__main__ import main
from scaling.machine import ASSUMED
from scaling.measure import SIZES
from tests.conftest import ROOT, fork_each

ARGUMENTS = [
    "measure",
    str(ROOT / "configs" / "snli" / "pt_kla_sfb.yaml"),
    "cpu_threads=1",
    "model.hidden_size=128",
    "--vocabulary=500",
    "--each=1,64",
    "--rounds=3",
]


def test_two_processes_measure_their_network_and_their_steps(tmp_path):
    group = {"processes": 2, "program": "scaling.__main__", "runs": [[*ARGUMENTS, "--json"]]}
    ((first, second),) = fork_each(tmp_path, [group])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    found = json.loads(first.stdout)
    assert found["processes"] == 2
    assert [int(size) for size in found["all_reduce"]] == list(SIZES)
    latency, bandwidth = (found["machine"]["across"][key] for key in ("latency", "bandwidth"))
    # What was measured lies around the ring that was fitted to it.
    ratios = [(2 * latency + int(n) / bandwidth) / seconds for n, seconds in found["all_reduce"].items()]
    assert min(ratios) < 1.1
    assert max(ratios) > 0.9
    assert [step["each"] for step in found["steps"]] == [1, 64]
    for step in found["steps"]:
        assert step["alone"] > 0
        assert step["predicted"] > 0
    assert found["steps"][1]["alone"] > found["steps"][0]["alone"]


def test_a_process_alone_has_no_network(capsys):
    assert main([*ARGUMENTS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["all_reduce"] == {}
    assert found["machine"]["across"] == asdict(ASSUMED.across)
    for step in found["steps"]:
        assert step["alone"] == step["measured"]
        assert step["predicted"] == pytest.approx(step["measured"], rel=0.5)
    assert main(ARGUMENTS) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("as options of `predict`: --tflops ")
    assert "--bandwidth-gbps" not in said


def test_the_model_is_fitted_to_plain_ddp(monkeypatch, capsys):
    monkeypatch.setattr(Runtime, "engine", "FSDP2")
    assert main(ARGUMENTS) == 2
    assert "and these processes run FSDP2" in capsys.readouterr().err


def test_sizes_that_give_no_line_are_refused(capsys):
    assert main([*ARGUMENTS[:-2], "--each=4"]) == 2
    assert "--each: should name at least two sizes" in capsys.readouterr().err
