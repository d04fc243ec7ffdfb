"""The Python examples of the documentation run."""

import re
import shutil
from pathlib import Path

from distvae.cli import main

ROOT = Path(__file__).resolve().parents[1]


def test_the_examples_of_use(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/mine", symlinks=True)
    Path("configs").mkdir()
    own = (ROOT / "configs/own.yaml").read_text(encoding="utf-8")
    small = "cpu_threads: 1\nevaluation: {importance_samples: 2, samples: 0}\n"
    assert "evaluation" not in own
    Path("configs/own.yaml").write_text(own + f"{small}", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["encode", "runs/mine", "--out", "z.parquet"]) == 0
    examples = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/use.md").read_text(encoding="utf-8"), re.DOTALL | re.M
    )
    assert len(examples) == 4
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/use.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "torch.Size([3, 4])" in shown
    assert Path("runs/rows/best/model.safetensors").exists()
    assert list(Path("runs/projector").rglob("tensors.tsv"))
    assert "sentence\tsplit" in next(Path("runs/projector").rglob("metadata.tsv")).read_text(encoding="utf-8")
