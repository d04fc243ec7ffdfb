"""Tokenizers. Each is one file: its options, and its rules.

To add one, write its file and name it below: its options become keys of the config's ``data`` section.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable
from typing import Annotated, get_args

from pydantic import Field

from distvae.tokenization.base import Tokenizer, WordLevel
from distvae.tokenization.characters import Characters, CharacterTokenizer
from distvae.tokenization.pieces import BPE, Pretrained, Unigram
from distvae.tokenization.treebank import Treebank, TreebankTokenizer
from distvae.tokenization.whitespace import Whitespace, WhitespaceTokenizer
from distvae.tokenization.words import Words, WordTokenizer

_Options = Words | Whitespace | Characters | Treebank | BPE | Unigram | Pretrained

TokenizerOptions = Annotated[_Options, Field(discriminator="name")]

# Tokenizers that need no training.
BUILT_IN: dict[str, Tokenizer] = {
    "words": WordTokenizer(),
    "whitespace": WhitespaceTokenizer(),
    "characters": CharacterTokenizer(),
    "treebank": TreebankTokenizer(),
}
OPTIONS: dict[str, type[_Options]] = {options.name: options for options in get_args(_Options)}


def fit(options: _Options, sentences: Iterable[str]) -> Tokenizer:
    """Return the tokenizer for a config's options, trained on sentences if it is one that is trained.

    Raises:
        UserError: it cannot be trained or read.
    """
    return BUILT_IN[options.name] if isinstance(options, WordLevel) else options.fit(sentences)


def origin(options: _Options) -> dict[str, str]:
    """Return what determines the tokens beside the options: versions of libraries, and the hash of a definition."""
    found = {library: importlib.metadata.version(library) for library in options.libraries}
    if isinstance(options, Pretrained):
        found["definition"] = hashlib.sha256(options.definition.encode()).hexdigest()
    return found
