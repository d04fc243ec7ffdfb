"""What a user can mend: one clear line that says what was wrong, where, and what to do."""

import os
import sys
import time
import unicodedata

# Characters of a message. A value of a megabyte would bury what is said of it.
LONGEST = 2000

# Characters that Unicode counts among controls, formats or the unassigned, and without which text is written wrongly:
# (zero width) joiners and non-joiners of Persian, of Indic scripts and of emoji; marks that stand around a number in
# Arabic, Syriac and Kaithi; Mongolian's vowel separator; the tags of a region's flag; emoji newer than this Python.
_NEEDED = {
    *map(chr, (0x200C, 0x200D, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, 0x180E)),
    *map(chr, range(0xE0020, 0xE0080)),
    *map(chr, range(0x1F000, 0x1FC00)),
}

# Seconds that processes without a word wait for the one that has it: launchers end all when the first has ended.
WAIT = 5.0


def printable(text: object) -> str:
    """Text in one line that a terminal shows as it is, and that changes nothing else there.

    Controls (terminal codes, line ends, bytes that are no text) and formats that change the order of the text around
    them, or cannot be seen, are written as Python escapes such as ``\\x1b`` and ``\\u202e``.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _can_be_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _can_be_shown(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] != "C" and category not in ("Zl", "Zp")) or character in _NEEDED


class UserError(ValueError):
    """Bad input. The programs print its message as one line and exit with code 2."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class OwnError(UserError):
    """Bad input of this process alone, such as its environment: it reports it, whatever its rank."""


class PeerError(UserError):
    """Bad input that the main process has found and reports: this process just stops."""


def one_line(message: str) -> str:
    """Return a message as one printable line of limited length, whatever it quotes."""
    line = printable(message)  # it may quote anything that a file holds or that is a name
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}"


def tell(error: UserError, own: bool = False) -> None:
    """Print the line. What is wrong for one process of a machine is mostly wrong for all: the first of each reports it,
    and the others wait until it has and their launcher ends them. One that still lives then was wrong alone.

    Args:
        own: it is wrong for this process, whatever the others do.
    """
    if not (own or isinstance(error, OwnError) or (not isinstance(error, PeerError) and _is_first())):
        time.sleep(WAIT)
        if isinstance(error, PeerError):
            return
    print(f"distvae: {error}", file=sys.stderr)


def _is_first() -> bool:
    """Return whether no other process of this machine reports what is wrong for all."""
    alone = os.environ.get("WORLD_SIZE", "") in ("", "1")
    rank = os.environ.get("LOCAL_RANK", "")
    return alone or not rank.isdecimal() or int(rank) == 0
