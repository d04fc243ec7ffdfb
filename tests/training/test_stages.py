"""The stages that a config asks for."""

from dataclasses import replace

import torch

from distvae.config.schema import Config, InferenceConfig, StageConfig
from distvae.training.stages import Best, stages_of

CPU = torch.device("cpu")


def test_stages_follow_the_config():
    inference = InferenceConfig(training="aggressive")
    config = Config(pretrain=StageConfig(max_epochs=2), train=StageConfig(max_epochs=3), inference=inference)
    pretrain, train = stages_of(config, CPU)
    assert (pretrain.name, pretrain.max_epochs, pretrain.autoencoder) == ("pretrain", 2, True)
    assert pretrain.objective.gamma.value == 0
    assert (pretrain.turns.part, train.turns.part) == ("all", "encoder")
    assert (train.name, train.max_epochs, train.number) == ("train", 3, 1)
    assert [stage.name for stage in stages_of(replace(config, pretrained="runs/ae"), CPU)] == ["train"]
    assert [stage.name for stage in stages_of(replace(config, train=StageConfig(max_epochs=0)), CPU)] == ["pretrain"]


def test_epochs_that_may_not_be_the_best_are_counted():
    assert Best({}, 3, 0.5).passed().passed() == Best({}, 3, 0.5, passed_over=2)
