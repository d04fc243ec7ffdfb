"""The Python examples of the documentation run."""

import json
import re
import shutil
from pathlib import Path

from matplotlib import pyplot

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


def test_the_notebook(tmp_path, monkeypatch, capsys, cache):
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    small = {
        '"data.train_size": 4000': f'"data.train_size": 300, "data.cache": "{cache}"',
        '"train.max_epochs": 12': '"train.max_epochs": 1',
        '"evaluation.importance_samples": 50': '"evaluation.importance_samples": 2, "data.test_size": 9',
    }
    for words, fewer in small.items():
        assert words in cells[0]
        cells[0] = cells[0].replace(words, fewer)
    # So few epochs draw words that do not come back as the tokens that they were.
    drawn = ', method="sample", temperature=0.7'
    assert drawn in cells[2]
    cells[2] = cells[2].replace(drawn, "")
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path / "docs")
    pyplot.switch_backend("agg")
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "docs/quickstart.ipynb", "exec"), names)
    assert "(300, 16)\n" in capsys.readouterr().out
    pyplot.close("all")
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
