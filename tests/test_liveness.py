"""What counts as a living latent: exact cases, among them those that a KL near its target hides."""

import pytest

from distvae.liveness import latent_state, missing_information


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
    ],
)
def test_mutual_information_decides(kl, information, target_rate, state):
    assert latent_state(kl, information, sentences=4000, target_rate=target_rate) == state


def test_few_sentences_can_hold_little_information():
    assert latent_state(kl=4.0, mutual_information=0.69, sentences=2, target_rate=4.0) == "alive"
    assert latent_state(kl=4.0, mutual_information=0.0, sentences=2) == "dead"
    assert latent_state(kl=4.0, mutual_information=0.0, sentences=1) is None


def test_a_latent_lacks_information_exactly_where_it_is_not_alive():
    assert missing_information(kl=4.0, mutual_information=0.38, sentences=4000, target_rate=4.0) == 2.0 - 0.38
    assert missing_information(kl=0.0, mutual_information=0.0, sentences=4000) == 0.1
    for kl in (0.0, 0.1, 1.9, 4.0, 184.0):
        for information in (0.0, 0.05, 0.1, 0.95, 2.0, 3.2, 6.0):
            for rate in (None, 0.0, 2.0, 40.0):
                for sentences in (1, 2, 20, 4000):
                    lacks = missing_information(kl, information, sentences, rate) > 0
                    assert lacks == (latent_state(kl, information, sentences, rate) not in ("alive", None))
