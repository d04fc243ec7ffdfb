"""Pieces of words, by the `tokenizers` library: trained on the train split, or taken from a file or the hub."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.system.errors import UserError
from distvae.system.settings import RULES, Location, Positive
from distvae.tokenization.base import Tokenizer

UNKNOWN = "<unk>"

_LONG_WORD = re.compile(r"\S{1000}")
# Between the scores of characters that are too rare for one of their own.
_STEP = 1e-4


class PieceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Args:
        definition: the content of its ``tokenizer.json``.

    Raises:
        ValueError: the library cannot read it.
    """

    unit = "piece"

    def __init__(self, definition: str):
        self.definition = definition
        try:
            self._library = _library().Tokenizer.from_str(definition)
        except BaseException as error:  # see `_of_library`
            _of_library(error)
            raise ValueError(f"the tokenizers library cannot read it: {error}") from None
        # Many tokenizers of models cut or fill sentences to a length.
        self._library.no_truncation()
        self._library.no_padding()

    @property
    def pieces(self) -> tuple[str, ...]:
        """All pieces, in the order of their ids."""
        ids: dict[str, int] = self._library.get_vocab(with_added_tokens=False)
        return tuple(sorted(ids, key=lambda piece: ids[piece]))

    @property
    def unknown(self) -> str | None:
        """The piece that stands for unknown text, if there is one."""
        model = json.loads(self.definition)["model"]
        if model.get("unk_id") is not None:
            return str(model["vocab"][model["unk_id"]][0])
        found: str | None = model.get("unk_token")
        return found

    def tokenize(self, sentence: str) -> list[str]:
        """Return the pieces of a sentence.

        Raises:
            UserError: a part of it is unknown, and the tokenizer has no piece for that.
        """
        try:
            tokens: list[str] = self._library.encode(sentence, add_special_tokens=False).tokens
        except BaseException as error:  # see `_of_library`
            _of_library(error)
            raise UserError(
                f"the tokenizer cannot split {sentence[:100]!r} ({error}); use one with an unknown token"
            ) from None
        return tokens

    def dropped(self, characters: Iterable[str]) -> list[str]:
        """Return the characters that are lost without a trace, as by byte-pair encoding without an unknown piece."""
        if self.unknown is not None:
            return []
        normalise = self._library.normalizer.normalize_str if self._library.normalizer is not None else str
        lost = []
        for character in sorted(set(characters)):
            with contextlib.suppress(UserError):  # other models raise an error at the sentence
                alone, within = self.tokenize(character), self.tokenize(f"a{character}") != self.tokenize("a")
                if normalise(character).strip() and not alone and not within:
                    lost.append(character)
        return lost

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text, as the tokenizer decodes its pieces."""
        decoder = self._library.decoder
        text: str = " ".join(tokens) if decoder is None else decoder.decode(list(tokens))
        return text


@dataclass(frozen=True, config=RULES)
class BPE:
    """Byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al., 2019), trained on train. No text is
    unknown."""

    name: Literal["bpe"] = "bpe"
    # Pieces of the vocabulary. Less text gives fewer.
    vocabulary_size: Positive = 8000

    libraries: ClassVar[tuple[str, ...]] = ("tokenizers",)

    def fit(self, sentences: Iterable[str]) -> PieceTokenizer:
        """Train on sentences.

        Raises:
            UserError: the vocabulary is too small for all bytes.
        """
        library = _library()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        if self.vocabulary_size < len(alphabet):
            raise UserError(
                f"data.vocabulary_size={self.vocabulary_size}: bpe needs at least {len(alphabet)}, one for each byte"
            )
        found = library.Tokenizer(library.models.BPE())
        found.normalizer = library.normalizers.NFC()
        found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.vocabulary_size, initial_alphabet=sorted(alphabet), show_progress=False
        )
        found.train_from_iterator(_cut_long_words(sentences), trainer)
        return PieceTokenizer(found.to_str())


@dataclass(frozen=True, config=RULES)
class Unigram:
    """The unigram language model of SentencePiece (Kudo, 2018), trained on train."""

    name: Literal["unigram"] = "unigram"
    # Pieces of the vocabulary. Less text gives fewer.
    vocabulary_size: Positive = 8000

    libraries: ClassVar[tuple[str, ...]] = ("tokenizers",)

    def fit(self, sentences: Iterable[str]) -> PieceTokenizer:
        """Train on sentences.

        Raises:
            UserError: the vocabulary is too small for the characters of the text.
        """
        library = _library()
        found = library.Tokenizer(library.models.Unigram())
        found.normalizer = library.normalizers.NFC()
        found.pre_tokenizer = library.pre_tokenizers.Metaspace()
        found.decoder = library.decoders.Metaspace()
        trainer = library.trainers.UnigramTrainer(
            vocab_size=self.vocabulary_size, unk_token=UNKNOWN, special_tokens=[UNKNOWN], show_progress=False
        )
        # While it trains, the library has a piece <UNK> without a score, so that text with one makes its code panic.
        texts = (sentence.replace("<UNK>", "<UNK >") for sentence in sentences)
        try:
            found.train_from_iterator(_cut_long_words(texts), trainer)
        except BaseException as error:  # see `_of_library`
            _of_library(error)
            raise UserError(
                f"data.vocabulary_size={self.vocabulary_size}: unigram cannot be trained: {error}; raise it (every"
                " character of train is a piece), or use data.tokenizer=bpe, whose pieces are bytes"
            ) from None
        return PieceTokenizer(_repeatable(found.to_str()))


@dataclass(frozen=True, config=RULES)
class Pretrained:
    """A ``tokenizer.json``, or the one of a model in a folder or on the hub."""

    name: Literal["pretrained"] = "pretrained"
    # A `tokenizer.json`, a folder with one, or an id of the hub, such as `openai-community/gpt2`
    tokenizer_file: Location | None = None

    libraries: ClassVar[tuple[str, ...]] = ("tokenizers",)

    def fit(self, sentences: Iterable[str]) -> PieceTokenizer:
        """Load it.

        Raises:
            UserError: it cannot be read, or drops characters of these sentences.
        """
        found = PieceTokenizer(self.definition)
        lost = found.dropped(itertools.chain.from_iterable(sentences))
        if lost:
            raise UserError(
                f"data.tokenizer_file={self.tokenizer_file}: it has no unknown piece, and would drop characters of"
                f" train: {' '.join(lost[:10])} ({len(lost):,} in total); use a byte-level one, or set its"
                " unk_token"
            )
        return found

    @cached_property
    def definition(self) -> str:
        """The content of the ``tokenizer.json``.

        Raises:
            UserError: it cannot be read.
        """
        if self.tokenizer_file is None:
            raise UserError(
                "data.tokenizer=pretrained: set data.tokenizer_file to a tokenizer.json or an id of the hub"
            )
        path = Path(self.tokenizer_file).expanduser()
        if path.is_dir():
            path /= "tokenizer.json"
        load = _library().Tokenizer.from_file if path.exists() else _library().Tokenizer.from_pretrained
        try:
            found: str = load(str(path) if path.exists() else self.tokenizer_file).to_str()
        except BaseException as error:  # see `_of_library`
            _of_library(error)
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"data.tokenizer_file={self.tokenizer_file}: is neither a readable tokenizer.json nor a model of the"
                f" hub that has one ({why})"
            ) from None
        return found


def _repeatable(definition: str) -> str:
    """Return a unigram model that is the same after each training on the same sentences.

    The library sums in a random order, which is rounded away here, as is the random order of pieces. To characters that
    are too rare for a score, it gives the lowest one plus multiples of 0.0001, in a random order; here all get the
    lowest.
    """
    content = json.loads(definition)
    unknown, *pieces = content["model"]["vocab"]
    lowest = min((score for _, score in pieces), default=0.0)

    def fixed(piece: str, score: float) -> float:
        steps = (score - lowest) / _STEP
        is_rare = len(piece) == 1 and steps < len(pieces) and abs(steps - round(steps)) < 1e-4
        return round(lowest if is_rare else score, 2)

    content["model"]["vocab"] = [unknown, *sorted([piece, fixed(piece, score)] for piece, score in pieces)]
    return json.dumps(content, ensure_ascii=False)


def _cut_long_words(sentences: Iterable[str]) -> Iterator[str]:
    """Cut words of more than 1,000 characters, because training takes the square of a word's length."""
    for sentence in sentences:
        if _LONG_WORD.search(sentence):
            yield from _LONG_WORD.sub("\\g<0>\n", sentence).split("\n")
        else:
            yield sentence


def _of_library(error: BaseException) -> None:
    """Raise an error again unless it may be one of the library: an ``Exception``, or a panic of its Rust code, which is
    not even that, and whose class cannot be imported."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _library() -> Any:
    """Import the library, which uses all cores and warns about it where processes are forked later."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
