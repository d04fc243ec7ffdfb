"""The state of a run between two steps, gathered and restored without a folder."""

from dataclasses import replace

import pytest
import torch

from distvae.config.schema import Config, ModelConfig, OptimizerConfig, StageConfig
from distvae.distributed.engines import make_engine
from distvae.distributed.runtime import Runtime
from distvae.methods.annealing import Linear
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.lagging import Aggressive
from distvae.methods.objective import Objective
from distvae.model.vae import TextVAE
from distvae.runs.checkpoints import Checkpoint
from distvae.system.errors import UserError
from distvae.training.plateau import Plateau
from distvae.training.stages import Best, EpochProgress, Stage, StageProgress
from distvae.training.state import copies, gather_state, restore, run_state
from distvae.training.step import Sums

CONFIG = Config(
    model=ModelConfig(embedding_size=6, hidden_size=8, latent_size=3),
    optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
    train=StageConfig(max_epochs=9),
)
CPU = torch.device("cpu")


@pytest.fixture
def runtime():
    runtime = Runtime(cpu_threads=1)
    yield runtime
    runtime.close()


def fresh() -> tuple[Stage, StageProgress]:
    turns = Aggressive().start(torch.zeros(2, dtype=torch.float64))
    stage = Stage("train", 1, 9, Objective(Linear(anneal_epochs=8), NoFreeBits(), CPU), turns, False)
    return stage, StageProgress(Plateau(CONFIG.plateau, CONFIG.optimizer.learning_rate))


@pytest.fixture
def saved(runtime) -> Checkpoint:
    """A run within its third epoch, two ranks' sums of it."""
    model = TextVAE(CONFIG.model, 20, 0, 1)
    engine = make_engine(runtime, model, CONFIG.optimizer)
    stage, progress = fresh()
    for loss in (5.0, 6.0):
        stage.objective.gamma.end_epoch(4.0)
        progress.plateau.observe(loss)
        progress.epoch += 1
    progress.plateau.learning_rate = 0.005
    progress.best = Best(copies(model.state_dict()), 1, 0.125)
    epoch = EpochProgress(Sums(3, CPU), batches=7, encoder_steps=90, seconds=1.5)
    for _ in range(16):
        stage.turns.encoder_moved(torch.tensor(12.0), torch.tensor(4.0), lambda values: values)
    stage.turns.mutual_information = 0.5
    epoch.sums.add(torch.tensor([[2.0, 10.0, 11.0, 1.0, 2.0, 3.0]]))
    optimizer, ranks = gather_state(runtime, engine, model, stage, epoch, 127)
    state = run_state(stage, progress, epoch, 127, [], "the corpus")
    return Checkpoint(copies(model.state_dict()), progress.best.weights, optimizer, ranks, state, CONFIG, 1)


def test_a_stage_is_restored_as_it_was(runtime, saved):
    stage, progress = fresh()
    engine = make_engine(runtime, TextVAE(CONFIG.model, 20, 0, 1), CONFIG.optimizer)
    epoch = restore(stage, progress, saved, CONFIG, runtime, engine)
    assert (epoch.batches, epoch.encoder_steps, epoch.seconds) == (7, 90, 1.5)
    turns = stage.turns
    assert (turns.steps, turns.previous, turns.mutual_information, turns.aggressive) == (16, 3.0, 0.5, True)
    assert turns.sums.tolist() == [12.0, 4.0]
    assert epoch.sums.totals.tolist() == [2.0, 10.0, 11.0, 1.0, 2.0, 3.0]
    assert (stage.objective.gamma.value, stage.objective.gamma.epochs) == (3 / 8, 2)
    assert (progress.epoch, progress.plateau.best, progress.plateau.waited) == (2, 5.0, 1)
    assert progress.plateau.learning_rate == 0.005
    assert (progress.best.epoch, progress.best.kl_weight) == (1, 0.125)
    assert (saved.state.step, saved.state.recorded_step, saved.state.data) == (127, 30, "the corpus")


def test_another_learning_rate_keeps_the_decays(runtime, saved):
    stage, progress = fresh()
    engine = make_engine(runtime, TextVAE(CONFIG.model, 20, 0, 1), CONFIG.optimizer)
    config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, learning_rate=0.04))
    restore(stage, progress, saved, config, runtime, engine)
    assert progress.plateau.learning_rate == pytest.approx(0.02)


def test_other_numbers_of_ranks_add_up_the_sums(runtime, saved):
    two = {name: torch.stack([rows[0], 2 * rows[0]]) for name, rows in saved.ranks.items()}
    stage, progress = fresh()
    engine = make_engine(runtime, TextVAE(CONFIG.model, 20, 0, 1), CONFIG.optimizer)
    epoch = restore(stage, progress, replace(saved, ranks=two, world_size=2), CONFIG, runtime, engine)
    assert epoch.sums.totals.tolist() == [6.0, 30.0, 33.0, 3.0, 6.0, 9.0]
    assert stage.turns.sums.tolist() == [36.0, 12.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ranks": {}}, "ranks.safetensors is of another model"),
        ({"ranks": {"sums": torch.zeros(1, 5)}}, "ranks.safetensors is of another model"),
        ({"ranks": {"sums": torch.zeros(1, 8)}}, "ranks.safetensors is of another model"),
        ({"turns": {"steps": 1}}, "state.json is not the state of a run"),
        ({"policy": {"weight": 1.0}}, "state.json is not the state of a run"),
        ({"plateau": {}}, "state.json is not the state of a run"),
        ({"best": {"epoch": 1}}, "state.json is not the state of a run"),
    ],
)
def test_the_state_of_another_run_is_refused(runtime, saved, change, words):
    stage, progress = fresh()
    engine = make_engine(runtime, TextVAE(CONFIG.model, 20, 0, 1), CONFIG.optimizer)
    saved = replace(saved, **change) if "ranks" in change else replace(saved, state=replace(saved.state, **change))
    with pytest.raises(UserError, match=words):
        restore(stage, progress, saved, CONFIG, runtime, engine)


def test_what_is_gathered_does_not_change_with_the_run(runtime, saved):
    """A checkpoint is written while training goes on."""
    model = TextVAE(CONFIG.model, 20, 0, 1)
    kept = copies(model.state_dict())
    before = {name: value.clone() for name, value in kept.items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert all(torch.equal(kept[name], value) for name, value in before.items())
