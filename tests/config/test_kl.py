"""The ``kl`` section of a config."""

import re

import pytest

from distvae.config.kl import KLConfig
from distvae.config.load import dump_config, load_config, with_precision
from tests.config.loading import refused


@pytest.mark.parametrize("policy", ["constant", "linear"])
def test_every_steps_belongs_to_soft_free_bits(load, policy):
    message = str(refused(load, "kl: {every_steps: 5}", f"kl.policy={policy}"))
    assert "every_steps" in message
    assert policy in message
    assert load("kl: {every_steps: 5}").kl.policy.every_steps == 5


@pytest.mark.parametrize(
    ("policy", "given", "reader"),
    [
        ("linear", "threshold=0.9", "kl.policy=soft_free_bits or from_above"),
        ("linear", "multiplier=0.7", "kl.policy=soft_free_bits or from_above"),
        ("linear", "target_rate=2", r"kl.policy=.*soft_free_bits.*, or kl.free_bits=dimension, .* or batch"),
        ("constant", "target_rate=2", r"kl.policy=.*soft_free_bits.*, or kl.free_bits=dimension, .* or batch"),
        ("constant", "anneal_epochs=3", "kl.policy=linear.* soft_free_bits"),
        ("soft_free_bits", "weight=0.5", "kl.policy=constant, linear.* cyclical"),
        ("linear", "cycles=2", "kl.policy=cyclical"),
    ],
)
def test_an_option_belongs_to_the_policies_that_read_it(load, policy, given, reader):
    message = str(refused(load, f"kl: {{policy: {policy}}}", f"kl.{given}"))
    assert f"kl.{given.partition('=')[0]} = " in message
    chosen = f"kl.policy is {policy}" + " and kl.free_bits is none" * ("free_bits=" in reader)
    assert re.search(f" belongs to {reader}.*, and {chosen}: leave it out, or set kl\\.", message)
    assert "\n" not in message
    # From the file, under another policy; and the message's own advice.
    stray = "kl: {" + given.replace("=", ": ") + "}"
    advice = re.search(r"set (kl\.\S+), its default", str(refused(load, stray, f"kl.policy={policy}"))).group(1)
    assert load(stray, f"kl.policy={policy}", advice).kl == KLConfig(policy=policy)


def test_free_bits_have_a_target_rate_under_any_policy(load):
    for policy in ("constant", "linear", "soft_free_bits"):
        kl = load("", f"kl.policy={policy}", "kl.free_bits=batch", "kl.target_rate=2").kl
        assert (kl.free_bits.target_rate, kl.rate) == (2.0, 2.0)
    assert load("").kl.rate == 4.0
    assert load("", "kl.policy=linear").kl.rate is None


def test_a_run_of_an_older_version_may_have_an_option_that_nothing_read(load, tmp_path):
    stray = dump_config(load("")).replace("policy: soft_free_bits", "policy: linear").replace("0.05", "0.9")
    assert "threshold" in str(refused(load, stray))
    (tmp_path / "config.yaml").write_text(stray)
    for options in ({"whole": True}, {"stored": True}):
        config = load_config(tmp_path / "config.yaml", **options)
        assert config.kl == KLConfig(policy="linear")
        assert config.unread["kl.threshold"] == "kl.policy=soft_free_bits or from_above"
        assert with_precision(config, "no").kl == config.kl
