"""Markdown tables whose text is shown verbatim."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distvae.system.errors import printable

# Entities for the characters that can begin markup, a tag, an entity, a link or mathematics. CommonMark, GitHub and
# TensorBoard agree on entities, but not on which characters a backslash can escape.
_MARKUP = {ord(character): f"&#{ord(character)};" for character in "\\`*[]<>|~$&"}
_EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # within a word it is not markup
_URL = re.compile(r":(?=//)")

_WWW = re.compile(r"\b(www)\.", re.IGNORECASE)

# What makes a line a heading, a list item or a rule.
_LEADING = re.compile(r"^(\d*)(#|[-+=.)](?=[-=\s]|$))")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    head, *body = (list(map(escaped, line)) for line in (header, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(header), *body))


def escaped(text: str) -> str:
    """Escape text for a cell or paragraph of Markdown, where any sentence or name is shown verbatim."""
    text = " ".join(map(printable, text.split())).translate(_MARKUP)
    text = _EDGE_UNDERSCORE.sub("&#95;", text)
    # A zero-width space after the @ keeps an e-mail address from becoming a link.
    text = _WWW.sub(r"\1&#46;", _URL.sub("&#58;", text)).replace("@", "@&#8203;")
    return _LEADING.sub(lambda found: found[1] + f"&#{ord(found[2])};", text)
