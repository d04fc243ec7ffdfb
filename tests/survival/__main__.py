"""``python -m tests.survival [DATA …]``: does the latent live on any text, and what does that cost?

Trains a grid of small models by each recipe: corpora × optimizers × seeds. A cell is alive if its test KL is within 15%
of λ, its mutual information is at least 0.7 of its KL, and at least 3 units are active. Its collapsed twin has the same
model, optimizer and epochs, and linear annealing alone; the difference of their NLLs is what a living latent costs.

A cell takes minutes on a core. Finished cells are kept: rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from distvae.runs.results import load_results
from tests.conftest import ROOT
from tests.survival.corpora import SPLITS, generated

RATE = 4.0  # λ, in nats per sentence
EPOCHS = 18  # of both stages together

# A small model for few sentences.
SETTINGS = {
    "model.embedding_size": 64,
    "model.hidden_size": 128,
    "model.latent_size": 16,
    "model.dropout": 0.2,
    "evaluation.importance_samples": 100,
    "evaluation.samples": 0,
    "cpu_threads": 1,
} | {f"data.{split}_size": size for split, size in SPLITS.items()}

OPTIMIZERS = {
    f"{name}-{rate:g}": {"optimizer.name": name, "optimizer.learning_rate": rate}
    for name, rate in (("sgd", 0.5), ("sgd", 1.0), ("adamw", 0.001), ("adamw", 0.003))
}


def _own(epochs: int) -> dict[str, object]:
    """What configs/own.yaml recommends."""
    return {"train.max_epochs": epochs, "kl.target_rate": RATE}


def _paper(epochs: int) -> dict[str, object]:
    """The paper's: an autoencoder for a third of the epochs, five of annealing, soft free bits."""
    return {
        "model.pooling": "last",
        "pretrain.max_epochs": epochs // 3,
        "train.max_epochs": epochs - epochs // 3,
        "kl.policy": "soft_free_bits",
        "kl.anneal_epochs": 5,
        "kl.target_rate": RATE,
    }


def _twin(epochs: int) -> dict[str, object]:
    """Collapsed: linear annealing alone."""
    return {
        "model.pooling": "last",
        "pretrain.max_epochs": 0,
        "train.max_epochs": epochs,
        "kl.policy": "linear",
        "kl.anneal_epochs": 5,
    }


RECIPES = {"own": _own, "paper": _paper, "twin": _twin}


@dataclass(frozen=True)
class CellScores:
    """Scores of the test sentences."""

    kl: float  # nats per sentence, as are the next two
    information: float
    nll: float
    active_units: int

    @property
    def alive(self) -> bool:
        return abs(self.kl / RATE - 1) <= 0.15 and self.information >= 0.7 * self.kl and self.active_units >= 3


@dataclass(frozen=True)
class Cell:
    """A training of the grid."""

    recipe: str
    corpus: str
    optimizer: str
    seed: int

    def folder(self, grid: Path, epochs: int) -> Path:
        return grid / f"{epochs}-epochs" / self.recipe / f"{self.corpus}-{self.optimizer}-{self.seed}"

    @property
    def twin(self) -> Cell:
        return Cell("twin", self.corpus, self.optimizer, self.seed)


def train(cell: Cell, data: str, epochs: int, run: Path) -> CellScores:
    """Train a cell, unless it has results.

    Raises:
        SystemExit: the training failed.
    """
    if not (run / "results.json").exists():
        keys = SETTINGS | OPTIMIZERS[cell.optimizer] | RECIPES[cell.recipe](epochs)
        keys |= {"data.path": data, "seed": cell.seed, "run": run}
        command = [sys.executable, "distvae/train.py", "configs/own.yaml", *(f"{k}={v}" for k, v in keys.items())]
        run.parent.mkdir(parents=True, exist_ok=True)
        log = Path(f"{run}.log")
        with log.open("w", encoding="utf-8") as out:
            code = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            raise SystemExit(f"{run}: ended with exit code {code}; see {log}")
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    scores = load_results(run).scores
    assert scores.nll is not None
    return CellScores(scores.kl.mean, scores.mutual_information.mean, scores.nll.mean, scores.active_units)


def line(cell: Cell, found: CellScores) -> str:
    """Return a cell's line of the table."""
    name = f"{cell.recipe:<6} {cell.corpus:<12} {cell.optimizer:<12} {cell.seed:>4}"
    figures = f"{found.kl:6.2f} {found.information:6.2f} {found.active_units:3d} {found.nll:7.2f}"
    return f"{name} {figures}  {'alive' if found.alive else '-'}"


def summary(outcomes: Mapping[Cell, CellScores]) -> list[str]:
    """Return, for each recipe, the share of its cells that live, and its NLLs beside those of the twins."""
    lines = []
    for recipe in dict.fromkeys(cell.recipe for cell in outcomes):
        found = {cell: outcome for cell, outcome in outcomes.items() if cell.recipe == recipe}
        alive = sum(outcome.alive for outcome in found.values())
        text = f"{recipe}: {alive} of {len(found)} alive"
        costs = [outcome.nll - outcomes[cell.twin].nll for cell, outcome in found.items() if cell.twin in outcomes]
        if costs and recipe != "twin":
            text += f"; NLL beside the twins {fmean(costs):+.2f} nats ({min(costs):+.2f} to {max(costs):+.2f})"
        lines.append(text)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.survival", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("data", nargs="*", metavar="DATA", help="files or folders of sentences, beside those built in")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "survival", help="default runs/survival")
    for name, known in (("recipes", RECIPES), ("optimizers", OPTIMIZERS)):
        parser.add_argument(f"--{name}", nargs="+", choices=known, default=list(known), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default 0")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of both stages together, default {EPOCHS}")
    parser.add_argument("--side-by-side", type=int, default=os.cpu_count(), help="trainings at once, a core each")
    options = parser.parse_args(arguments)
    grid = options.folder.resolve()
    corpora = generated(grid / "corpora") | {Path(path).name: str(Path(path).resolve()) for path in options.data}
    outcomes: dict[Cell, CellScores] = {}

    def finish(cell: Cell) -> None:
        outcomes[cell] = train(cell, corpora[cell.corpus], options.epochs, cell.folder(grid, options.epochs))
        print(line(cell, outcomes[cell]), flush=True)

    cells = itertools.product(options.recipes, corpora, options.optimizers, options.seeds)
    with ThreadPoolExecutor(options.side_by_side) as pool:
        list(pool.map(finish, itertools.starmap(Cell, cells)))
    print("", *summary({cell: outcomes[cell] for cell in sorted(outcomes, key=lambda cell: cell.recipe)}), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
