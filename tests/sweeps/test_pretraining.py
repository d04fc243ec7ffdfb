"""Which trials share a pretraining."""

import pytest

from distvae.config.load import load_config
from distvae.sweeps.pretraining import fingerprint
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
