"""MAUVE of histograms and features that are known, and features of a tiny GPT-2."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from distvae.evaluation import mauve
from distvae.evaluation.mauve import Features, of_histograms
from distvae.system.errors import UserError
from tests.conftest import needs

RNG = np.random.default_rng(0)
TEXTS = ["a man is here", "two men", "", "a man", "a man is here and there and there"]


def test_equal_histograms_have_one():
    p = RNG.dirichlet(np.ones(20))
    assert of_histograms(p, p) == pytest.approx(1)


def test_histograms_that_share_nothing():
    """Then KL(p‖r) = −ln s and KL(q‖r) = −ln(1 − s): the area under x = (1 − s)^5 and y = s^5, up to its corners."""
    p, q = np.array([1.0, 0]), np.array([0, 1.0])
    area, _ = quad(lambda s: s**mauve.SCALE * mauve.SCALE * (1 - s) ** (mauve.SCALE - 1), 0, 1)
    assert of_histograms(p, q) == pytest.approx(area, rel=0.05)
    assert of_histograms(p, q) < 0.005


def test_mauve_is_symmetric_and_falls_as_histograms_part():
    p = np.array([0.5, 0.3, 0.2, 0.0])
    scores = []
    for share in (0.1, 0.3, 0.6, 1.0):
        q = (1 - share) * p + share * np.array([0, 0, 0.1, 0.9])
        scores.append(of_histograms(p, q))
        assert of_histograms(q, p) == pytest.approx(scores[-1])
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0] < 1


def test_the_values_of_the_authors_program():
    """Those of mauve-text 0.4.0 for the same histograms."""
    rng = np.random.default_rng(1)
    pairs = [(rng.dirichlet(np.ones(50) * a), rng.dirichlet(np.ones(50) * a)) for a in (0.1, 1, 10)]
    expected = [0.07906738798577839, 0.36422932297067906, 0.9790544986420686]
    assert [of_histograms(p, q) for p, q in pairs] == pytest.approx(expected, rel=1e-9)


def test_features_of_one_kind_have_a_higher_mauve_than_features_of_two():
    needs(importlib.util.find_spec("sklearn"), "no scikit-learn")
    one, other = RNG.normal(size=(2, 200, 12))
    alike, apart = mauve.mauve(one, other, seed=0), mauve.mauve(one, other + 2 * np.eye(12)[0], seed=0)
    assert alike > 0.9
    assert apart < 0.5
    assert mauve.mauve(one, other, seed=0) == alike
    assert mauve.mauve(one, one, seed=2**32) == pytest.approx(1)
    # Only directions count.
    assert mauve.mauve(one * 7, other, seed=0) == pytest.approx(alike)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The folder of a GPT-2 of words with random weights."""
    needs(importlib.util.find_spec("transformers"), "no transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<end>", "<unk>", "a", "man", "is", "here", "two", "men", "and", "there"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "n_positions": 8, "n_layer": 2, "n_embd": 16, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=1.0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_features_are_the_last_state_of_each_text_whatever_the_batch(gpt2, monkeypatch):
    from transformers import GPT2Model

    features, steps = Features(str(gpt2), torch.device("cpu")), []
    monkeypatch.setattr(mauve, "TOGETHER", 2)
    found = features.of(TEXTS, steps.append)
    assert (found.shape, sum(steps)) == ((5, 16), 5)
    model, words = GPT2Model.from_pretrained(gpt2).eval(), {"a": 2, "man": 3, "two": 6, "men": 7}
    for text, row in zip(TEXTS, found, strict=True):
        if len(text.split()) <= 2:
            ids = torch.tensor([[words[word] for word in text.split()] or [0]])
            assert torch.allclose(model(ids).last_hidden_state[0, -1], torch.from_numpy(row), atol=1e-5)


@pytest.mark.parametrize("most", [2, 99])
def test_a_long_text_is_cut(gpt2, monkeypatch, most):
    """At a number of tokens, and at the eight that the model takes."""
    monkeypatch.setattr(mauve, "TOKENS", most)
    read = min(most, 8)
    found = Features(str(gpt2), torch.device("cpu")).of(["a " * read, "a " * 20, "a " * (read - 1)])
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


def test_the_command_adds_a_row(finished, gpt2, said):
    words = ["sample", finished, "--statistics", "--mauve", gpt2]
    found = json.loads(said(*words, "--json"))
    assert all(0 < found[name]["mauve"] <= 1 for name in ("samples", "valid"))
    assert json.loads(said(*words, "--json")) == found
    shown = said(*words).splitlines()
    assert shown[-1].startswith("MAUVE of these and of test")
    assert shown[-1].split()[-2:] == [f"{found[name]['mauve']:.3f}" for name in ("samples", "valid")]
    assert "MAUVE" not in said(*words[:3])


def test_bad_input_is_one_line(finished, said, tmp_path):
    needs(importlib.util.find_spec("transformers"), "no transformers")
    assert said("sample", finished, "--mauve", "gpt2", code=2).startswith("distvae: --mauve: is one of the figures of")
    line = said("sample", finished, "--statistics", "--mauve", tmp_path, code=2)
    assert line.startswith(f"distvae: --mauve {tmp_path}: should be a language model of Hugging Face")
    assert line.count("\n") == 1


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--mauve needs transformers and scikit-learn: pip install 'distvae\[mauve\]'"):
        mauve.check_installed()
