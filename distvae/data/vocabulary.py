"""Tokens and ids: vocabularies with classes of unknown words."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from distvae.system.errors import UserError
from distvae.system.files import damaged, read_as, read_text, write_text
from distvae.tokenization import BUILT_IN, OPTIONS
from distvae.tokenization.base import Tokenizer, UnknownWords
from distvae.tokenization.pieces import UNKNOWN, PieceTokenizer

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SPECIALS = (PAD, BOS, EOS)

# How texts spell a word that was unknown to whoever prepared them.
UNKNOWN_SPELLINGS = frozenset((UNKNOWN, "<UNK>", "[UNK]", "_UNK"))

# The file of a vocabulary, and the one beside it of a tokenizer of pieces.
VOCABULARY = "vocabulary.json"
TOKENIZER = "tokenizer.json"

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

Unknown = Literal["classes", "single", "closed"]
UNKNOWN_TOKENS: dict[Unknown, tuple[str, ...]] = {
    "classes": CLASSES,
    "single": (UNKNOWN,),
    # Replaces dropped words only: a closed vocabulary has no unknown words.
    "closed": (UNKNOWN,),
}


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
        tokenizer: name of the tokenizer. Vocabularies of older versions have none: theirs are words by the Treebank
            rules.
        definition: of a tokenizer of pieces, its ``tokenizer.json``.

    Raises:
        ValueError: the tokens do not begin with the special tokens and those of ``unk``, or one is repeated, or there
            is no such tokenizer.
    """

    tokens: tuple[str, ...]
    unk: Unknown
    tokenizer: str = "treebank"
    definition: str | None = None

    def __post_init__(self) -> None:
        if self.tokenizer not in OPTIONS:
            raise ValueError(f"tokenizer {self.tokenizer!r} is not one of {', '.join(OPTIONS)}")
        if self.tokens[: self._first_word] != SPECIALS + UNKNOWN_TOKENS[self.unk]:
            raise ValueError(f"the tokens do not begin with {' '.join(SPECIALS + UNKNOWN_TOKENS[self.unk])}")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a token is repeated")

    @classmethod
    def build(cls, counts: Mapping[str, int], min_count: int, unk: UnknownWords, tokenizer: str) -> Vocabulary:
        """Build from the words seen at least ``min_count`` times, by descending count and then alphabetically.

        A word that is spelled like a special or unknown-word token is left out, so it is unknown.
        """
        first = SPECIALS + UNKNOWN_TOKENS[unk]
        reserved = UNKNOWN_SPELLINGS.union(first)
        words = [word for word, count in counts.items() if count >= min_count and word not in reserved]
        return cls(first + tuple(sorted(words, key=lambda word: (-counts[word], word))), unk, tokenizer)

    @classmethod
    def of_pieces(cls, tokenizer: PieceTokenizer, name: str) -> Vocabulary:
        """Build from all pieces of a tokenizer. The one that stands for unknown text is ``<unk>``."""
        first = SPECIALS + UNKNOWN_TOKENS["single"]
        others = {*first, tokenizer.unknown}
        pieces = tuple(piece for piece in tokenizer.pieces if piece not in others)
        return cls(first + pieces, "single", name, tokenizer.definition)

    @classmethod
    def closed(cls, words: Iterable[str]) -> Vocabulary:
        """Build from exactly these words, in this order. Encoding any other word is an error.

        Raises:
            ValueError: a word is repeated, or is spelled like a special token.
        """
        return cls(SPECIALS + UNKNOWN_TOKENS["closed"] + tuple(words), "closed", "words")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a file that ``save`` wrote.

        Raises:
            UserError: the file cannot be read, or is not a vocabulary.
        """
        found = read_as(cls, Path(path), "a vocabulary")
        if found.unk == "closed":  # of captions, whose words are the same by the Treebank rules
            return replace(found, tokenizer="words")
        if found.tokenizer in BUILT_IN:
            return found
        file = Path(path).with_name(TOKENIZER)
        found = replace(found, definition=read_text(file))
        try:
            found.splitter  # noqa: B018 - reads the definition
        except ValueError as error:
            raise damaged(file, "a tokenizer", str(error)) from None
        return found

    def save(self, path: str | Path) -> None:
        """Write JSON with one token per line, and beside it the ``tokenizer.json`` of a tokenizer of pieces."""
        if self.definition is not None:
            write_text(Path(path).with_name(TOKENIZER), self.definition)
        content = {"unk": self.unk, "tokenizer": self.tokenizer, "tokens": self.tokens}
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

    def ids(self, sentence: str) -> list[int]:
        """Return the ids of a sentence, ``<s>`` and ``</s>`` included.

        Raises:
            UserError: as ``encode``.
        """
        return self.encode(self.splitter.tokenize(sentence))

    def text(self, ids: Iterable[int]) -> str:
        """Return the decoded ids as a readable sentence."""
        return self.splitter.join(self.decode(ids))

    @cached_property
    def splitter(self) -> Tokenizer:
        """What splits sentences into tokens and joins them."""
        return BUILT_IN[self.tokenizer] if self.definition is None else PieceTokenizer(self.definition)

    @property
    def _first_word(self) -> int:
        return len(SPECIALS) + len(UNKNOWN_TOKENS[self.unk])

    @cached_property
    def _ids(self) -> dict[str, int]:
        # Words only: a word of the text that is spelled like a special token must not become one.
        return {word: i for i, word in enumerate(self.tokens[self._first_word :], self._first_word)}

    def _id(self, word: str) -> int:
        known = self._ids.get(word)
        if known is None:
            word = self.splitter.plain(word)
            known = self._ids.get(word)
        if known is not None:
            return known
        if self.unk == "closed":
            raise UserError(f"{word!r} is not one of the {len(self._ids)} words of the vocabulary")
        if self.unk == "single" or word in UNKNOWN_SPELLINGS:
            return self.unknown
        return len(SPECIALS) + CLASSES.index(shape_class(word))
