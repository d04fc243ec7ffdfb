"""The sentences that trackers show of a model as it is trained."""

from __future__ import annotations

from distvae.config.schema import Config
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation import generation
from distvae.evaluation.decoding import Decoding
from distvae.model.vae import TextVAE


def sample_sentences(model: TextVAE, vocabulary: Vocabulary, config: Config, longest: int) -> dict[str, list[str]]:
    """Return sentences decoded greedily from prior samples and from an interpolation, by title.

    A language model has neither: its sentences are drawn word by word. The model is left in evaluation mode.

    Args:
        longest: tokens of a sentence at most.
    """
    count = config.evaluation.samples
    if count == 0:
        return {}
    model.eval()
    z = generation.prior_draws(model, count, config.seed)
    if config.language_model:
        drawn = Decoding(method="sample", max_tokens=longest, seed=config.seed)
        return {"samples": generation.decode(model, z, vocabulary, drawn)}
    greedy = Decoding(max_tokens=longest)
    line = generation.interpolation(z[0], z[-1], count)
    return {
        "prior samples": generation.decode(model, z, vocabulary, greedy),
        "interpolation": generation.decode(model, line, vocabulary, greedy),
    }
