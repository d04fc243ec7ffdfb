"""User errors: one printable line that says what is wrong, where, and what to do."""

import os
import sys
import time
import unicodedata

# Characters of a message at most: it may quote a value of a megabyte.
LONGEST = 2000

# Characters that Unicode counts as control, format or unassigned, but that correct spelling needs: zero-width joiners
# and non-joiners of Persian, Indic scripts and emoji; number marks of Arabic, Syriac and Kaithi; Mongolian's vowel
# separator; the tags of a region's flag; emoji newer than this Python.
_NEEDED = {
    *map(chr, (0x200C, 0x200D, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, 0x180E)),
    *map(chr, range(0xE0020, 0xE0080)),
    *map(chr, range(0x1F000, 0x1FC00)),
}

# Seconds that other processes wait for the one that prints an error: launchers end all when the first exits.
WAIT = 5.0


def printable(text: object) -> str:
    """Return text as one line that is safe to print on a terminal.

    Control characters (terminal codes, line ends, undecodable bytes) and format characters that are invisible or
    reorder the text around them become Python escapes such as ``\\x1b`` and ``\\u202e``.
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
    """Bad input of this process alone, such as its environment. It prints the error whatever its rank."""


class PeerError(UserError):
    """Bad input that another process prints. This process only stops."""


def one_line(message: str) -> str:
    """Return a message as one printable line of limited length, whatever it quotes."""
    line = printable(message)
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}"


def reason(error: BaseException) -> str:
    """Return the first line of an error's root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0].strip(" :")


def tell(error: UserError, own: bool = False) -> None:
    """Print an error once per machine.

    An error of one process is usually an error of all, so the first process of each machine prints it, and the others
    wait for their launcher to end them. A process that is still alive then was the only one, and prints it.

    Args:
        own: the error concerns this process alone; print it at once.
    """
    if not (own or isinstance(error, OwnError) or (not isinstance(error, PeerError) and _is_first())):
        time.sleep(WAIT)
        if isinstance(error, PeerError):
            return
    print(f"distvae: {error}", file=sys.stderr)


def _is_first() -> bool:
    """Return whether this process is the one of its machine that prints shared errors."""
    alone = os.environ.get("WORLD_SIZE", "") in ("", "1")
    rank = os.environ.get("LOCAL_RANK", "")
    return alone or not rank.isdecimal() or int(rank) == 0
