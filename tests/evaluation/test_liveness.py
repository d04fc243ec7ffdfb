"""What counts as a living latent: exact cases, among them those that a KL near its target hides; and the advice."""

import pytest

from distvae.config.kl import KLConfig
from distvae.config.schema import Config, ModelConfig, OptimizerConfig, StageConfig
from distvae.evaluation.liveness import LatentWatch, judge, latent_state, missing_information


@pytest.mark.parametrize(
    ("kl", "information", "target_rate", "state"),
    [
        (0.0, 0.0, None, "dead"),
        (1.91, 0.0, 2.0, "dead"),  # a KL in its band
        (118.0, 0.0, None, "dead"),  # an autoencoder whose decoder ignores z
        (3.98, 0.05, 4.0, "dead"),
        (4.0, 0.38, 4.0, "hollow"),
        (4.0, 1.9, 4.0, "hollow"),
        (184.0, 6.21, None, "alive"),  # at most ln N of a KL can be information
        (0.83, 0.83, None, "alive"),
        (0.83, 0.83, 4.0, "weak"),
        (3.98, 3.51, 4.0, "alive"),
        (0.3, 0.28, 0.3, "alive"),  # all that λ asks for
    ],
)
def test_mutual_information_decides(kl, information, target_rate, state):
    assert latent_state(kl, information, sentences=4000, target_rate=target_rate) == state


def test_few_sentences_can_hold_little_information():
    assert latent_state(kl=4.0, mutual_information=0.69, sentences=2, target_rate=4.0) == "alive"
    assert latent_state(kl=4.0, mutual_information=0.0, sentences=2) == "dead"
    assert latent_state(kl=4.0, mutual_information=0.0, sentences=1) is None


def test_a_language_model_has_no_latent_to_judge():
    config = Config(model=ModelConfig(latent_size=0), pretrain=StageConfig(0), kl=KLConfig(policy="constant"))
    assert judge(0.0, 0.0, 4000, config, "train") is None


ALONE = {"pretrain": StageConfig(0)}


@pytest.mark.parametrize(
    ("config", "stage", "named", "unnamed"),
    [
        # What a run already does is not advised.
        (Config(), "train", ["kl.policy=from_above", "train.max_epochs=100", "word_dropout"], ["pretrain"]),
        (Config(**ALONE), "train", ["kl.policy=from_above", "pretraining of the encoder"], []),
        (Config(pretrained="runs/ae", **ALONE), "train", ["more epochs"], ["pretraining of the encoder"]),
        (Config(kl=KLConfig(policy="linear"), **ALONE), "train", ["from_above", "pretraining of the encoder"], []),
        (Config(kl=KLConfig(policy="linear", free_bits="sentence")), "train", ["more epochs", "from_above"], []),
        (Config(kl=KLConfig(policy="from_above"), **ALONE), "train", ["more epochs"], ["from_above", "pretrain"]),
        # γ plays no part in an autoencoder.
        (Config(), "pretrain", ["optimizer.learning_rate below 0.5", "word_dropout above 0"], ["kl.", "train.max"]),
        (Config(optimizer=OptimizerConfig(learning_rate=0.003)), "pretrain", ["learning_rate below 0.003"], ["kl."]),
    ],
)
def test_the_advice_is_what_the_run_does_not_do_yet(config, stage, named, unnamed):
    latent = judge(kl=4.1, mutual_information=0.0, sentences=4000, config=config, stage=stage)
    assert latent.state == "dead"
    assert latent.advice.startswith("mutual information 0.00 of a KL of 4.10 nats: the decoder ignores z. Try ")
    assert all(word in latent.advice for word in named), latent.advice
    assert not any(word in latent.advice for word in unnamed), latent.advice


def test_a_living_latent_needs_no_advice():
    assert judge(4.0, 3.5, 4000, Config(), "train").advice is None
    assert judge(180.0, 6.0, 4000, Config(), "pretrain").state == "alive"


def test_a_target_rate_counts_only_where_the_method_aims_at_it():
    assert judge(0.8, 0.8, 4000, Config(), "train").state == "weak"
    assert judge(0.8, 0.8, 4000, Config(kl=KLConfig(policy="linear", free_bits="batch")), "train").state == "weak"
    assert judge(0.8, 0.8, 4000, Config(kl=KLConfig(policy="linear")), "train").state == "alive"
    assert judge(0.8, 0.8, 4000, Config(), "pretrain").state == "alive"


def test_a_latent_lacks_information_exactly_where_it_is_not_alive():
    assert missing_information(kl=4.0, mutual_information=0.38, sentences=4000, target_rate=4.0) == 2.0 - 0.38
    assert missing_information(kl=0.0, mutual_information=0.0, sentences=4000) == 0.3
    for kl in (0.0, 0.1, 1.9, 4.0, 184.0):
        for information in (0.0, 0.05, 0.1, 0.95, 2.0, 3.2, 6.0):
            for rate in (None, 0.0, 2.0, 40.0):
                for sentences in (1, 2, 20, 4000):
                    lacks = missing_information(kl, information, sentences, rate) > 0
                    assert lacks == (latent_state(kl, information, sentences, rate) not in ("alive", None))


def test_a_watch_warns_at_the_third_lifeless_epoch_of_a_stage_in_a_row():
    watch = LatentWatch()
    states = ["dead", "weak", "dead", "dead", "alive", "dead", "hollow", None, "dead", "dead", "dead"]
    warned = []
    for epoch, state in enumerate(states, 1):
        watch.follow(epoch, state)
        warned.append(watch.warns)
    assert [epoch for epoch, warns in enumerate(warned, 1) if warns] == [3, 11]
    watch.follow(1, "dead")  # a new stage
    assert (watch.state, watch.lifeless) == ("dead", 1)
