"""What a user can mend: one clear line that says what was wrong, where, and what to do."""

import os
import sys
import time

# Characters of a message. A value of a megabyte would bury what is said of it.
LONGEST = 2000

# Seconds that processes without a word wait for the one that has it: launchers end all when the first has ended.
WAIT = 5.0


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
    # It may quote anything from a file or a name: line ends, terminal codes, bytes that are no text.
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}"


def tell(error: UserError, own: bool = False) -> None:
    """Print the line. What is wrong for one process of a machine is wrong for all: the first of each reports it, and
    the others wait until it has. ``own``: it is wrong for this process, whatever the others do."""
    if own or isinstance(error, OwnError) or (not isinstance(error, PeerError) and _is_first()):
        print(f"distvae: {error}", file=sys.stderr)
    else:
        time.sleep(WAIT)


def _is_first() -> bool:
    """Return whether no other process of this machine reports what is wrong for all."""
    alone = os.environ.get("WORLD_SIZE", "") in ("", "1")
    rank = os.environ.get("LOCAL_RANK", "")
    return alone or not rank.isdecimal() or int(rank) == 0
