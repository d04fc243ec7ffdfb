"""Tokenizers. Each is one file: its options, and its rules.

To add one, write its file and name it below: its options become keys of the config's ``data`` section.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Annotated, get_args

from pydantic import Field

from distvae.tokenization.base import Tokenizer, WordLevel
from distvae.tokenization.characters import Characters
from distvae.tokenization.pieces import BPE, Pretrained, Unigram
from distvae.tokenization.treebank import Treebank
from distvae.tokenization.whitespace import Whitespace
from distvae.tokenization.words import Words

_Options = Words | Whitespace | Characters | Treebank | BPE | Unigram | Pretrained

TokenizerOptions = Annotated[_Options, Field(discriminator="name")]

# Tokenizers that need no training.
BUILT_IN: dict[str, Tokenizer] = {
    options.name: options.tokenizer for options in get_args(_Options) if issubclass(options, WordLevel)
}
OPTIONS: dict[str, type[_Options]] = {options.name: options for options in get_args(_Options)}


def origin(options: _Options) -> dict[str, str]:
    """Return what determines the tokens beside the options: versions of libraries, and the hash of a definition."""
    found = {library: importlib.metadata.version(library) for library in options.libraries}
    if isinstance(options, Pretrained):
        found["definition"] = hashlib.sha256(options.definition.encode()).hexdigest()
    return found
