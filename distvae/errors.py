"""What a user can mend: one clear line that says what was wrong, where, and what to do."""


class UserError(ValueError):
    """Bad input. The programs print its message as one line and exit with code 2."""


class PeerError(UserError):
    """Bad input that the main process has found and reports: this process just stops."""
