"""A run keeps the data that it began with: standard input, and a commit of the hub."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest

from distvae.config.load import load_config
from distvae.config.schema import DataConfig
from distvae.data import corpus, hub
from distvae.runs.resume import pinned
from distvae.system.errors import UserError
from distvae.train import main

LINES = b"".join(b"dog %d runs\n" % i for i in range(60))


def pipe(monkeypatch, content: bytes, is_terminal: bool = False) -> None:
    stream = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: is_terminal)
    monkeypatch.setattr("sys.stdin", stream)


def test_a_run_of_standard_input_resumes_with_its_sentences(tiny, tmp_path, monkeypatch, capsys):
    cache, run = tmp_path / "cache", tmp_path / "run"
    sizes = [f"data.{split}_size=null" for split in ("train", "valid", "test")]
    command = [str(tiny), f"run={run}", f"data.cache={cache}", "data.path=-", "pretrain.max_epochs=0", *sizes,
               "train.max_epochs=1", "kl={policy: constant}"]  # fmt: skip
    pipe(monkeypatch, LINES)
    assert main(command) == 0
    stored = load_config(run / "config.yaml").data.path
    assert stored.startswith(str(cache / "stdin-"))
    capsys.readouterr()
    for content in (LINES, b""):
        pipe(monkeypatch, content)
        assert main(command) == 0
        assert "finished" in capsys.readouterr().out
    pipe(monkeypatch, b"", is_terminal=True)
    command[command.index("train.max_epochs=1")] = "train.max_epochs=2"
    assert main(command) == 0
    assert f"standard input is empty; the run's sentences are {stored}" in capsys.readouterr().out
    pipe(monkeypatch, LINES + b"another\n")
    assert main(command) == 2
    assert "was trained on other sentences" in capsys.readouterr().err
    assert len(list(cache.glob("stdin-*.txt"))) == 2
    assert not list(cache.glob(".*"))


def test_standard_input_without_sentences(tiny, tmp_path, monkeypatch, capsys):
    pipe(monkeypatch, b"")
    assert main([str(tiny), f"run={tmp_path / 'run'}", f"data.cache={tmp_path}", "data.path=-"]) == 2
    assert "data.path=-: standard input has no sentences; pipe them" in capsys.readouterr().err
    assert "has no sentences" in (tmp_path / "run" / "status.json").read_text()
    with pytest.raises(UserError, match="only distvae/train.py reads standard input"):
        corpus.prepare(DataConfig(path="-", cache=str(tmp_path)), progress=False)


def test_a_run_keeps_its_commit(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_look_up", lambda dataset, revision: asked.append(revision) or "a" * 40)
    config = load_config(tiny)
    config = replace(config, data=DataConfig(path="acme/reviews"))
    run = tmp_path / "run"
    assert pinned(config, run).revision == "a" * 40
    run.mkdir()
    (run / "config.yaml").write_text("data: {path: acme/reviews, revision: " + "b" * 40 + "}\n")
    assert pinned(config, run).revision == "b" * 40
    for path, revision in (("acme/others", None), ("acme/reviews", "main")):
        other = replace(config, data=DataConfig(path=path, revision=revision))
        assert pinned(other, run).revision == "a" * 40
    assert asked == [None, None, "main"]
    snli = replace(config, data=DataConfig(path="stanfordnlp/snli"))
    assert pinned(snli, run).revision is None
