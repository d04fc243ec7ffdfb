"""Commands that need no model. tests/test_cli.py has `compare` and `report` of trained ones."""

import json
import re

from distvae.cli import main
from distvae.commands import name_of


def test_config_describes_settings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["config", "kl.multiplier"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("kl.multiplier=0.1  (number > 0 and < 1; read by kl.policy=")
    assert shown[1] == "    χ: γ is multiplied by 1 + χ or 1 − χ."
    assert main(["config", "--json"]) == 0
    keys = [setting["key"] for setting in json.loads(capsys.readouterr().out)["settings"]]
    assert {"run", "kl", "kl.target_rate", "speed.cuda_graphs"} <= set(keys)
    assert main(["config", "kl.multiplieer"]) == 2
    assert capsys.readouterr().err == "distvae: unknown key kl.multiplieer; did you mean kl.multiplier?\n"


def test_data_shows_the_sentences_of_a_config(tmp_path, capsys):
    (tmp_path / "all.txt").write_text("".join(f"sentence {i % 7} is here .\n" for i in range(60)), encoding="utf-8")
    (tmp_path / "some.yaml").write_text(f"data: {{path: {tmp_path / 'all.txt'}, cache: {tmp_path / 'cache'}}}\n")
    arguments = ["data", str(tmp_path / "some.yaml"), "data.min_count=1"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "by data.tokenizer=words" in shown
    assert re.search(r"^train +48 +240 +5 +5 +0\.00%$", shown, flags=re.MULTILINE)
    assert "WARNING train: 85.4% of the sentences are repetitions" in shown
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["tokens"] == 240
    assert main(["data", str(tmp_path / "some.yaml"), "data.path=nowhere.txt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_export_has_the_name_of_its_run(tmp_path):
    for name in ("best", "pretrained"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    assert name_of(f"{tmp_path}/mine/") == name_of(f"{tmp_path}/mine/best") == name_of(f"{tmp_path}/mine/pretrained")
    assert name_of(f"{tmp_path}/mine") == "mine"
    assert name_of("org/name") == "org/name"  # of the hub
