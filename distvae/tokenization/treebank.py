"""Words by NLTK's Treebank rules, as runs of older versions have them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.system.settings import RULES
from distvae.tokenization.base import Tokenizer, WordLevel

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer, TreebankWordDetokenizer


class TreebankTokenizer(Tokenizer):
    """Words and punctuation by the Treebank rules (``isn't`` → ``is n't``, quotes → `````` and ``''``).

    For runs of older versions, which had no other tokenizer, and to compare with them.
    """

    unit = "word"

    def tokenize(self, sentence: str) -> list[str]:
        """Return words and punctuation marks."""
        tokens: list[str] = _rules()[0].tokenize(sentence)
        return tokens

    def join(self, tokens: Sequence[str]) -> str:
        """Return a readable sentence. It may differ from the original, because the rules lose spaces."""
        sentence: str = _rules()[1].detokenize(tokens)
        return sentence


@dataclass(frozen=True, config=RULES)
class Treebank(WordLevel):
    """Words by NLTK's Treebank rules."""

    name: Literal["treebank"] = "treebank"

    tokenizer: ClassVar[Tokenizer] = TreebankTokenizer()
    libraries: ClassVar[tuple[str, ...]] = ("nltk",)


@functools.cache
def _rules() -> tuple[NLTKWordTokenizer, TreebankWordDetokenizer]:
    # The import takes half a second.
    from nltk.tokenize import NLTKWordTokenizer, TreebankWordDetokenizer

    return NLTKWordTokenizer(), TreebankWordDetokenizer()
