"""Words and punctuation of languages with spaces between words, by rules that lose no space.

Between two words there is a space; there is none before ``.`` and none after ``(``. That is what plain tokens mean. A
punctuation mark with other spaces around it carries them: ``▁`` is a space and ``￭`` is none. So ``Is it "new" ?``
becomes ``Is it ▁"￭ new " ▁?``. Where a vocabulary lacks a marked token, the plain one stands for it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import regex
from pydantic.dataclasses import dataclass

from distvae.system.settings import RULES
from distvae.tokenization.base import Tokenizer, WordLevel
from distvae.tokenization.characters import CHARACTER

SPACE, NO_SPACE = "▁", "￭"

# Sentences of only words, commas and a final period, as 98% of SNLI's are.
_PLAIN = re.compile(r"[A-Za-z0-9]+(?:(?:,? |-)[A-Za-z0-9]+)*\.?")

# Letters, numbers, and what cannot be seen: joiners, soft hyphens, direction marks, controls.
_WORD = r"[\p{L}\p{N}\p{M}_\p{Cf}\u2800\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"
_CLITIC = r"n['’]t|['’](?:s|m|d|re|ve|ll)"
_TOKEN = regex.compile(
    r"""
      <[^<>\s]+>                                               # <unk>, </s>
    | \[[A-Z]+\]                                               # [UNK]
    | (?:https?://|www\.)\S*[\p{L}\p{N}/]                      # a URL, without the punctuation after it
    | [\p{L}\p{N}._%+-]{0,63}[\p{L}\p{N}_]@[\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)+  # an e-mail address
    | (?:\p{L}\.){2,}(?!WORD)                                  # u.s.
    | \p{N}+(?:[.,]\p{N}+)*°\p{L}?(?!WORD)                     # 20°C
    | (?P<word>(?:(?<!WORD|\.)\.(?=\p{N}))?WORD+(?:(?:[-‐‑.&/·'’]|(?<=\p{N})[,:–٫٬](?=\p{N}))WORD+)*)
    | (?:CLITIC)(?!WORD)                                       # after a space or a bracket
    | \.{2,} | -{2,} | `` | ''
    | (?!\s)CHARACTER                                          # any other, such as an emoji of several codes
    """.replace("WORD", _WORD)
    .replace("CLITIC", _CLITIC)
    .replace("CHARACTER", CHARACTER),
    regex.VERBOSE,
)
# The end of a word that has a clitic. No more than these characters decide, so a long word takes no longer.
_ENDING, _ENDING_LENGTH = regex.compile(f".?[^'’]({_CLITIC})", regex.IGNORECASE), 4
_ENDING_ALONE = regex.compile(_CLITIC, regex.IGNORECASE)
_HAS_WORD = regex.compile(r"[\p{L}\p{N}<]")

# Punctuation with no space before it, after it, on either side.
_CLOSING = frozenset(".,;:!?)]}%‰°”’»›…،؛؟۔।॥'\"")
_OPENING = frozenset("([{“‘„‚«‹¿¡#@")
_BOTH = frozenset("、。，．：；！？（）「」『』【】《》・～")


class Spacing(NamedTuple):
    """How a token is set in text."""

    before: bool  # without a space before it
    after: bool  # without a space after it
    mark: bool  # punctuation, which may carry other spaces


class WordTokenizer(Tokenizer):
    """Words and punctuation marks, which ``join`` sets again with the same spaces.

    English clitics are tokens, as in the Penn Treebank (``isn't`` → ``is n't``). E-mail addresses, URLs, numbers,
    ``u.s.``, ``s&p``, ``well-known`` and ``<unk>`` stay whole. Text is brought to Unicode's NFC, and white space to
    single spaces.
    """

    unit = "word"

    def tokenize(self, sentence: str) -> list[str]:
        """Return words and punctuation marks."""
        if _PLAIN.fullmatch(sentence):
            # The result of the rules, without their pass over every character.
            return sentence.replace(",", " ,").replace(".", " .").split(" ")
        tokens: list[str] = []
        last, end = Spacing(False, False, False), -1
        for core, start, stop in _cores(unicodedata.normalize("NFC", sentence)):
            token, here, glued = core, spacing(core), start == end
            if not tokens:  # an opening quote is the same token here as elsewhere
                token = SPACE + token if here.before and not here.after else token
            elif glued and not (last.after or here.before):
                if here.mark or not last.mark:
                    token = NO_SPACE + token
                else:
                    tokens[-1] += NO_SPACE
            elif not glued:
                if last.after:
                    tokens[-1] += SPACE
                if here.before:
                    token = SPACE + token
            tokens.append(token)
            last, end = here, stop
        return tokens

    def join(self, tokens: Sequence[str]) -> str:
        """Return the sentence that was split, up to white space and NFC."""
        text, glued = "", True
        for token in tokens:
            core, here = _read(token)
            text += core if glued or here.before else f" {core}"
            glued = here.after
        return text

    def plain(self, token: str) -> str:
        """Return the token without spaces of its own."""
        return _read(token)[0]


@dataclass(frozen=True, config=RULES)
class Words(WordLevel):
    """Words and punctuation marks."""

    name: Literal["words"] = "words"

    tokenizer: ClassVar[Tokenizer] = WordTokenizer()
    libraries: ClassVar[tuple[str, ...]] = ("regex",)


def _cores(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each token without marks, and where it starts and stops."""
    for match in _TOKEN.finditer(text):
        start, stop = match.span()
        endings = []
        while match["word"] and (split := _ENDING.fullmatch(text, max(start, stop - _ENDING_LENGTH), stop)):
            endings.append((split[1], split.start(1), stop))
            stop = split.start(1)
        # A mark that is in the text would be read as a space.
        yield text[start:stop].replace(SPACE, "_").replace(NO_SPACE, "■"), start, stop
        yield from reversed(endings)


@functools.lru_cache(maxsize=100_000)
def spacing(core: str) -> Spacing:
    """Return how a token without marks is set in text."""
    if _ENDING_ALONE.fullmatch(core):
        return Spacing(True, False, True)
    if _HAS_WORD.search(core):
        return Spacing(False, False, False)
    if core in _BOTH:
        return Spacing(True, True, True)
    if core in _OPENING or core == "``" or (len(core) == 1 and unicodedata.category(core) == "Sc"):
        return Spacing(False, True, True)
    return Spacing(core in _CLOSING or core == "''" or core.startswith(".."), False, True)


@functools.lru_cache(maxsize=100_000)
def _read(token: str) -> tuple[str, Spacing]:
    """Return a token without its marks, and how it is set in text."""
    core, first, last = token, "", ""
    if len(core) > 1 and core[0] in (SPACE, NO_SPACE):
        first, core = core[0], core[1:]
    if len(core) > 1 and core[-1] in (SPACE, NO_SPACE):
        last, core = core[-1], core[:-1]
    before, after, mark = spacing(core)
    return core, Spacing(first == NO_SPACE if first else before, last == NO_SPACE if last else after, mark)
