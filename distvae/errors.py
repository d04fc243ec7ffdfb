"""What a user can mend: one clear line that says what was wrong, where, and what to do."""

import os
import sys


class UserError(ValueError):
    """Bad input. The programs print its message as one line and exit with code 2."""


class PeerError(UserError):
    """Bad input that the main process has found and reports: this process just stops."""


def tell(error: UserError) -> None:
    """Print the line. What is wrong for one process of a machine is wrong for all: the first of each says so."""
    if not isinstance(error, PeerError) and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"distvae: {error}", file=sys.stderr)
