"""Which trials share a pretraining."""

from pathlib import Path

import pytest

from distvae.config.load import load_config
from distvae.config.schema import Config, ModelConfig, StageConfig
from distvae.sweeps.pretraining import fingerprint, source_of
from distvae.system.errors import UserError
from tests.sweep_folders import BASE


@pytest.mark.parametrize(
    ("key", "matters"),
    [
        ("kl.target_rate=7", False),
        ("train.max_epochs=9", False),
        ("checkpoint.keep=5", False),
        ("evaluation.importance_samples=7", False),
        ("run=elsewhere", False),
        ("seed=1", True),
        ("data.path=there.txt", True),
        ("data.train_size=70", True),
        ("model.hidden_size=7", True),
        ("optimizer.learning_rate=0.3", True),
        ("pretrain.max_epochs=3", True),
        ("plateau.patience=3", True),
        ("evaluation.seed=1", True),
    ],
)
def test_a_fingerprint_goes_by_what_matters_to_pretraining(tmp_path, key, matters):
    (tmp_path / "base.yaml").write_text(BASE)
    here, there = (load_config(tmp_path / "base.yaml", overrides) for overrides in ([], [key]))
    assert (fingerprint(here) != fingerprint(there)) == matters


def test_a_row_takes_the_pretraining_of_the_one_that_pretrains_alike():
    def row(hidden: int, train: int, pretrain: int = 3) -> Config:
        return Config(
            model=ModelConfig(hidden_size=hidden),
            pretrain=StageConfig(max_epochs=pretrain),
            train=StageConfig(max_epochs=train),
        )

    rows = {Path("a"): row(4, 0), Path("b"): row(5, 0), Path("pt"): row(5, 2), Path("alone"): row(5, 2, 0)}
    assert [source_of(name, rows) for name in rows] == [None, None, Path("b"), None]
    with pytest.raises(UserError, match="pt: needs the pretraining of a row .* a has model.hidden_size=4, not 5"):
        source_of(Path("pt"), {name: config for name, config in rows.items() if name != Path("b")})
    with pytest.raises(UserError, match="but b, c all pretrain alike; keep one"):
        source_of(Path("pt"), rows | {Path("c"): rows[Path("b")]})
