"""Tokens and ids: Treebank tokenisation, and vocabularies with classes of unknown words."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distvae.system.errors import UserError
from distvae.system.files import read_as, write_text

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer, TreebankWordDetokenizer

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SPECIALS = (PAD, BOS, EOS)
UNKNOWN = "<unk>"

# Share of unknown words above which to warn: they are predicted as a class, which lowers the perplexity.
MANY_UNKNOWN = 0.05

# Classes by shape. The first match wins, so the order tells `21-year-old` (letters) from `10-12` (a dash).
SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (f"<unk-{name}>", re.compile(pattern))
    for name, pattern in (
        ("twoDigits", r"\d{2}"),
        ("fourDigits", r"\d{4}"),
        ("number", r"\d+"),
        ("digitLetter", r"(?=.*\d).*[^\W\d_].*"),
        ("digitDash", r"(?=.*\d).*-.*"),
        ("digitSlash", r"(?=.*\d).*/.*"),
        ("digitComma", r"(?=.*\d).*,.*"),
        ("digitPoint", r"(?=.*\d).*\..*"),
        ("time", r"\d{1,2}:\d{2}(:\d{2})?"),
    )
)
ALL_CAPS, INITIAL_CAPITAL, LOWER, OTHER = "<unk-allCaps>", "<unk-initCap>", "<unk-lower>", "<unk-other>"
CLASSES = (*(name for name, _ in SHAPES), ALL_CAPS, INITIAL_CAPITAL, LOWER, OTHER)

# Sentences of only words, commas and a final period, as 98% of SNLI's are; and the words that the Treebank rules split
# without an apostrophe.
_PLAIN = re.compile(r"[A-Za-z0-9]+(?:(?:,? +|-)[A-Za-z0-9]+)*\.?")
_CONTRACTED = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b", re.IGNORECASE)

UnknownWords = Literal["classes", "single", "closed"]
UNKNOWN_TOKENS: dict[UnknownWords, tuple[str, ...]] = {
    "classes": CLASSES,
    "single": (UNKNOWN,),
    # Replaces dropped words only: a closed vocabulary has no unknown words.
    "closed": (UNKNOWN,),
}


@functools.cache
def _treebank() -> tuple[NLTKWordTokenizer, TreebankWordDetokenizer]:
    # The import takes half a second, which training on a prepared corpus can save.
    from nltk.tokenize import NLTKWordTokenizer, TreebankWordDetokenizer

    return NLTKWordTokenizer(), TreebankWordDetokenizer()


def tokenize(sentence: str) -> list[str]:
    """Split into words and punctuation by the Treebank rules (``isn't`` → ``is n't``, quotes → `````` and ``''``)."""
    if _PLAIN.fullmatch(sentence) and not _CONTRACTED.search(sentence):
        # The result of the rules, without their thirty passes over the text.
        return sentence.replace(",", " ,").replace(".", " .").split()
    tokens: list[str] = _treebank()[0].tokenize(sentence)
    return tokens


def join(tokens: Sequence[str]) -> str:
    """Return a readable sentence. It may differ from the original, because ``tokenize`` loses spaces."""
    sentence: str = _treebank()[1].detokenize(tokens)
    return sentence


def shape_class(word: str) -> str:
    """Return the class of an unknown word, one of ``CLASSES``: the first of these that matches.

    Two digits, four digits, another number; a digit beside letters, a dash, a slash, a comma or a point; a time; all
    capitals, an initial capital, lowercase; other.
    """
    for name, pattern in SHAPES:
        if pattern.fullmatch(word):
            return name
    if word.isupper():
        return ALL_CAPS
    if word[:1].isupper():
        return INITIAL_CAPITAL
    return LOWER if word.islower() else OTHER


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids: special tokens, tokens for unknown words, words.

    Attributes:
        tokens: V distinct tokens.
        unk: how to encode an unknown word: by its shape's class, by ``<unk>``, or (``closed``) with an error.

    Raises:
        ValueError: the tokens do not begin with the special tokens and those of ``unk``, or one is repeated.
    """

    tokens: tuple[str, ...]
    unk: UnknownWords

    def __post_init__(self) -> None:
        if self.tokens[: self._first_word] != SPECIALS + UNKNOWN_TOKENS[self.unk]:
            raise ValueError(f"the tokens do not begin with {' '.join(SPECIALS + UNKNOWN_TOKENS[self.unk])}")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a token is repeated")

    @classmethod
    def build(cls, counts: Mapping[str, int], min_count: int, unk: Literal["classes", "single"]) -> Vocabulary:
        """Build from the words seen at least ``min_count`` times, by descending count and then alphabetically.

        A word that is spelled like a special or unknown-word token is left out, so it is unknown.
        """
        reserved = SPECIALS + UNKNOWN_TOKENS[unk]
        words = [word for word, count in counts.items() if count >= min_count and word not in reserved]
        return cls(reserved + tuple(sorted(words, key=lambda word: (-counts[word], word))), unk)

    @classmethod
    def closed(cls, words: Iterable[str]) -> Vocabulary:
        """Build from exactly these words, in this order. Encoding any other word is an error.

        Raises:
            ValueError: a word is repeated, or is spelled like a special token.
        """
        return cls(SPECIALS + UNKNOWN_TOKENS["closed"] + tuple(words), "closed")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a file that ``save`` wrote.

        Raises:
            UserError: the file cannot be read, or is not a vocabulary.
        """
        return read_as(cls, Path(path), "a vocabulary")

    def save(self, path: str | Path) -> None:
        """Write JSON with one token per line."""
        content = {"unk": self.unk, "tokens": self.tokens}
        write_text(Path(path), json.dumps(content, ensure_ascii=False, indent=0) + "\n")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pad(self) -> int:
        return SPECIALS.index(PAD)

    @property
    def bos(self) -> int:
        return SPECIALS.index(BOS)

    @property
    def eos(self) -> int:
        return SPECIALS.index(EOS)

    @property
    def unknown(self) -> int:
        """The id that replaces a dropped word: ``<unk>``, or the class of words that no other class matches."""
        return self._first_word - 1

    @property
    def unknown_ids(self) -> range:
        """The ids for words outside the vocabulary. No sentence of a closed vocabulary has them."""
        return range(len(SPECIALS), self._first_word)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits; vocabularies have the same ones exactly if they give every word the same id."""
        return hashlib.sha256(json.dumps([self.unk, self.tokens]).encode()).hexdigest()[:16]

    def encode(self, words: Iterable[str]) -> list[int]:
        """Return the ids of ``<s> words </s>``.

        Raises:
            UserError: the vocabulary is closed and a word is not in it.
        """
        return [self.bos, *map(self._id, words), self.eos]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens before the first ``</s>``, without ``<s>`` and ``<pad>``."""
        tokens = []
        for i in ids:
            if i == self.eos:
                break
            if i not in (self.pad, self.bos):
                tokens.append(self.tokens[i])
        return tokens

    def text(self, ids: Iterable[int]) -> str:
        """Return the decoded ids as a readable sentence."""
        return join(self.decode(ids))

    @property
    def _first_word(self) -> int:
        return len(SPECIALS) + len(UNKNOWN_TOKENS[self.unk])

    @cached_property
    def _ids(self) -> dict[str, int]:
        # Words only: a word of the text that is spelled like a special token must not become one.
        return {word: i for i, word in enumerate(self.tokens[self._first_word :], self._first_word)}

    def _id(self, word: str) -> int:
        known = self._ids.get(word)
        if known is not None:
            return known
        if self.unk == "closed":
            raise UserError(f"{word!r} is not one of the {len(self._ids)} words of the vocabulary")
        return self.unknown if self.unk == "single" else len(SPECIALS) + CLASSES.index(shape_class(word))
