"""Characters, for scripts without spaces between words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import ClassVar, Literal

import regex
from pydantic.dataclasses import dataclass

from distvae.system.settings import RULES
from distvae.tokenization.base import Tokenizer, WordLevel

# An extended grapheme cluster. The first case only saves `\X` from going back to the start of a run of flags.
CHARACTER = r"(?:\p{RI}{2}(?=\p{RI})|\X)"


class CharacterTokenizer(Tokenizer):
    """Extended grapheme clusters of Unicode: what a reader takes for a character, such as हि or an emoji."""

    unit = "character"

    def tokenize(self, sentence: str) -> list[str]:
        """Return the characters, spaces included, of the text in NFC."""
        found: list[str] = regex.findall(CHARACTER, unicodedata.normalize("NFC", sentence))
        return found

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text."""
        return "".join(tokens)


@dataclass(frozen=True, config=RULES)
class Characters(WordLevel):
    """Characters."""

    name: Literal["characters"] = "characters"

    tokenizer: ClassVar[Tokenizer] = CharacterTokenizer()
    libraries: ClassVar[tuple[str, ...]] = ("regex",)
