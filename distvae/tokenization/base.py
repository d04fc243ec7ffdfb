"""The interface of a tokenizer, and the options of those whose tokens are words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.system.settings import RULES, Positive

UnknownWords = Literal["classes", "single"]


class Tokenizer(ABC):
    """Splits sentences into tokens, and joins tokens into readable text."""

    unit: str  # what a token is, in a word

    @abstractmethod
    def tokenize(self, sentence: str) -> list[str]:
        """Return the tokens of a sentence, without ``<s>`` and ``</s>``."""

    @abstractmethod
    def join(self, tokens: Sequence[str]) -> str:
        """Return readable text, in which tokens for unknown words are spelled as they are."""

    def plain(self, token: str) -> str:
        """Return the token that stands for ``token`` where a vocabulary lacks it, which may be itself."""
        return token


@dataclass(frozen=True, config=RULES)
class WordLevel:
    """Options of a tokenizer whose vocabulary is the words of train."""

    # Words that occur fewer times in train are unknown.
    min_count: Positive = 2
    # Map unknown words to classes by their shape, or to a single `<unk>`.
    unk: UnknownWords = "classes"

    tokenizer: ClassVar[Tokenizer]
    libraries: ClassVar[tuple[str, ...]] = ()  # whose versions may change the tokens

    def fit(self, sentences: Iterable[str]) -> Tokenizer:
        """Return the tokenizer, which needs no training."""
        return self.tokenizer
