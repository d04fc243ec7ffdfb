"""Markdown that shows text as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distvae.system.errors import printable

# What can begin something in a line of Markdown (markup, a tag, an entity, a link that needs no brackets, mathematics),
# as entities: CommonMark, GitHub and TensorBoard agree on these, and not on which characters a backslash can escape.
_MARKUP = {ord(character): f"&#{ord(character)};" for character in "\\`*[]<>|~$&"}
_EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # within a word it marks nothing
_URL = re.compile(r":(?=//)")

_WWW = re.compile(r"\b(www)\.", re.IGNORECASE)

# What makes a line a heading, an item of a list or a rule.
_LEADING = re.compile(r"^(\d*)(#|[-+=.)](?=[-=\s]|$))")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *body = (list(map(escaped, line)) for line in (header, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(header), *body))


def escaped(text: str) -> str:
    """Text for a cell or a paragraph of Markdown, where it is shown as it is: a sentence, a reason or a name can be
    anything."""
    text = " ".join(map(printable, text.split())).translate(_MARKUP)
    text = _EDGE_UNDERSCORE.sub("&#95;", text)
    # An address of mail would be a link too; nothing seen, after the @, keeps it from being one.
    text = _WWW.sub(r"\1&#46;", _URL.sub("&#58;", text)).replace("@", "@&#8203;")
    return _LEADING.sub(lambda found: found[1] + f"&#{ord(found[2])};", text)
