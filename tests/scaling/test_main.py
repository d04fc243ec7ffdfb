"""`python -m scaling`: its arguments, and the predictions that follow from them."""

import pytest

from scaling import __main__, tables
from scaling.machine import Machine, Network
from tests.conftest import ROOT

SNLI = str(ROOT / "configs" / "snli" / "pt_kla_sfb.yaml")


def test_the_options_describe_a_machine_a_model_and_processes(monkeypatch):
    words = "--tflops 0.5 --overhead-ms 20 --gdraws 0.25 --per-node 1 --latency-us 50 --bandwidth-gbps 8"
    words += " --inside-latency-us 7 --inside-bandwidth-gbps 80 --vocabulary 300 --tokens 5 --processes 2,8"
    asked = []
    monkeypatch.setattr(tables, "prediction", lambda *arguments: asked.append(arguments) or [])
    assert __main__.main(["predict", SNLI, "optimizer.batch_size=64", *words.split()]) == 0
    ((config, *rest),) = asked
    machine = Machine(0.5e12, 0.02, 0.25e9, 1, inside=Network(7e-6, 1e10), across=Network(50e-6, 1e9))
    assert rest == [300, 5, machine, (2, 8)]
    assert config.optimizer.batch_size == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml", "--vocabulary", "300"], "nowhere.yaml"),
        ([SNLI, "--vocabulary", "2"], "argument --vocabulary: '2': should be a whole number of at least 3"),
        ([SNLI, "--vocabulary", "300", "--tokens", "0"], "argument --tokens: '0'"),
        ([SNLI, "--vocabulary", "300", "--processes", "8,0"], "argument --processes: '0'"),
        ([SNLI, "--vocabulary", "300", "--processes", "8,"], "argument --processes: ''"),
        ([SNLI, "--vocabulary", "300", "--processes", "12"], "12 processes fill no whole number of nodes of 8"),
        ([SNLI, "--vocabulary", "300", "--bandwidth-gbps", "0"], "argument --bandwidth-gbps: '0': should be above 0"),
        ([SNLI, "--vocabulary", "300", "--latency-us", "-1"], "argument --latency-us: '-1': should be at least 0"),
        ([SNLI, "--vocabulary", "300", "--tflops", "nan"], "argument --tflops: 'nan'"),
        ([SNLI, "--vocabulary", "300", "--kl.target_rate=6"], "write kl.target_rate=6"),
    ],
)
def test_a_user_error_is_one_line(capsys, arguments, words):
    try:
        code = __main__.main(["predict", *arguments])
    except SystemExit as refused:
        code = refused.code
    line = capsys.readouterr().err
    assert code == 2
    assert line.startswith("distvae: ")
    assert line.count("\n") == 1
    assert words in line
