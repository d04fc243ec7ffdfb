"""The signals that ask a sweep to stop."""

import signal

import pytest

from distvae.sweeps.ray.signals import StopSignals
from distvae.system.signals import SIGNALS


@pytest.fixture(autouse=True)
def handlers():
    """Restores the handlers after the test."""
    former = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def test_the_first_signal_is_remembered():
    signals = StopSignals()
    signals.install()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert signals.received == "SIGTERM"


def test_a_second_sigint_ends_the_process():
    signals = StopSignals()
    signals.install()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_sweep_under_nohup_outlives_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopSignals().install()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
