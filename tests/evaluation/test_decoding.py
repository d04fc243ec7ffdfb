"""A setting of decoding that is out of range, or of another method, is refused."""

import math

import numpy as np
import pytest

from distvae.evaluation.decoding import Decoding
from distvae.system.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gredy"}, "method 'gredy': should be greedy, sample or beam"),
        ({"temperature": 0.5}, "temperature belongs to method sample, not to greedy"),
        ({"top_k": 5}, "top_k belongs to method sample, not to greedy"),
        ({"method": "beam", "top_p": 0.5}, "top_p belongs to method sample, not to beam"),
        ({"method": "sample", "beam_size": 3}, "beam_size belongs to method beam, not to sample"),
        ({"method": "sample", "temperature": 0.0}, "temperature 0.0: should be a number above 0"),
        ({"method": "sample", "temperature": -1.0}, "temperature -1.0: should be a number above 0"),
        ({"method": "sample", "temperature": math.nan}, "temperature nan"),
        ({"method": "sample", "temperature": math.inf}, "temperature inf"),
        ({"method": "sample", "top_p": 0.0}, "top_p 0.0: should be a number above 0 and at most 1"),
        ({"method": "sample", "top_p": 1.5}, "top_p 1.5: should be a number above 0 and at most 1"),
        ({"method": "sample", "top_p": math.nan}, "top_p nan: should be a number above 0 and at most 1"),
        ({"method": "sample", "top_k": 0}, "top_k 0: should be a whole number of at least 1"),
        ({"method": "beam", "beam_size": 0}, "beam_size 0: should be a whole number of at least 1"),
        ({"method": "sample", "temperature": "1"}, "temperature '1': should be a number above 0"),
        ({"method": "sample", "top_p": "1"}, "top_p '1': should be a number above 0"),
        ({"method": "sample", "top_k": 1.5}, "top_k 1.5: should be a whole number of at least 1"),
        ({"max_tokens": 0}, "max_tokens 0: should be a whole number of at least 1"),
        ({"max_tokens": None}, "max_tokens None: should be a whole number of at least 1"),
        ({"max_tokens": 2**31}, "max_tokens 2147483648: should be at most 2147483647"),
        ({"seed": -1}, "seed -1: should be a whole number of at least 0"),
        ({"seed": 1.5}, "seed 1.5: should be a whole number of at least 0"),
    ],
)
def test_a_setting_out_of_place_is_named(options, message):
    with pytest.raises(UserError, match=message) as caught:
        Decoding(**options)
    assert "\n" not in str(caught.value)


def test_settings_at_their_bounds_are_taken():
    Decoding(method="sample", temperature=1e-3, top_k=1, top_p=1.0, max_tokens=1)
    Decoding(method="beam", beam_size=1)
    Decoding(seed=10**30)


def test_whole_numbers_may_be_numpys():
    """Draws depend on how a seed is written."""
    found = Decoding(method="sample", seed=np.int64(3), top_k=np.int32(2))
    assert repr((found.seed, found.top_k)) == "(3, 2)"
