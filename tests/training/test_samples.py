from dataclasses import replace

import distvae
from distvae.training.samples import sample_sentences


def samples_of(run, count):
    vae = distvae.load(run, "cpu")
    config = replace(vae.config, evaluation=replace(vae.config.evaluation, samples=count))
    return vae, sample_sentences(vae.model, vae.vocabulary, config, 12)


def test_samples_and_a_line_between_the_first_and_the_last_of_them(finished):
    vae, found = samples_of(finished, 3)
    assert {title: len(sentences) for title, sentences in found.items()} == {"prior samples": 3, "interpolation": 3}
    assert found["prior samples"] == vae.sample(3, seed=vae.config.seed, max_tokens=12)
    assert found["interpolation"][::2] == found["prior samples"][::2]
    assert samples_of(finished, 0)[1] == {}


def test_a_language_model_draws_words(language_model):
    vae, found = samples_of(language_model, 4)
    assert found == {"samples": vae.sample(4, seed=vae.config.seed, max_tokens=12)}
