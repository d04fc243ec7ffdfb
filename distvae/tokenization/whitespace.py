"""Text that is tokenised already, such as PTB: tokens are what white space separates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.system.settings import RULES
from distvae.tokenization.base import Tokenizer, WordLevel


class WhitespaceTokenizer(Tokenizer):
    """Tokens are what white space separates."""

    unit = "word"

    def tokenize(self, sentence: str) -> list[str]:
        """Return what white space separates."""
        return sentence.split()

    def join(self, tokens: Sequence[str]) -> str:
        """Return the tokens with spaces between."""
        return " ".join(tokens)


@dataclass(frozen=True, config=RULES)
class Whitespace(WordLevel):
    """Text that is tokenised already."""

    name: Literal["whitespace"] = "whitespace"

    tokenizer: ClassVar[Tokenizer] = WhitespaceTokenizer()
