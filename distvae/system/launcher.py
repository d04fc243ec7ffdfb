"""Environment variables set by launchers, Slurm and MPI, checked before a library reads them."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from distvae.system.errors import OwnError, UserError

# Numeric variables and their smallest valid values.
NUMBERS = {
    "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 1,
    "SLURM_STEP_NUM_TASKS": 1, "SLURM_RESTART_COUNT": 0, "SLURM_CPUS_ON_NODE": 1,
    "PMI_RANK": 0, "PMI_SIZE": 1, "MPI_LOCALRANKID": 0, "MPI_LOCALNRANKS": 1,
    "OMPI_COMM_WORLD_RANK": 0, "OMPI_COMM_WORLD_SIZE": 1,
    "OMPI_COMM_WORLD_LOCAL_RANK": 0, "OMPI_COMM_WORLD_LOCAL_SIZE": 1,
    "MV2_COMM_WORLD_RANK": 0, "MV2_COMM_WORLD_SIZE": 1,
    "MV2_COMM_WORLD_LOCAL_RANK": 0, "MV2_COMM_WORLD_LOCAL_SIZE": 1,
}  # fmt: skip

# Where Accelerate looks for a rank and the number of processes, in this order.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

ADVICE = (
    "`accelerate launch` and `torchrun` set everything that the processes of a run need; to train with one process,"
    " unset it"
)

# Attempts to look up a host name while the network is unavailable, and the seconds between them.
TRIES, PAUSE = 3, 2.0


def number(name: str, default: int) -> int:
    """Return the value of one of ``NUMBERS``, or ``default`` if it is unset or empty.

    Raises:
        UserError: it is not a number, or too small.
    """
    text, least = os.environ.get(name, "").strip(), NUMBERS[name]
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise OwnError(
            f"the environment variable {name} is {text[:20]!r}: should be a whole number from {least}; {ADVICE}"
        )
    return int(text)


def check() -> None:
    """Check the launcher's variables. Empty ones are removed from the environment.

    Raises:
        UserError: a value is invalid, variables contradict each other, or some are missing.
    """
    for name in [*NUMBERS, "MASTER_ADDR", *(name for name in os.environ if name.startswith("ACCELERATE_"))]:
        if not os.environ.get(name, "set").strip():
            del os.environ[name]
    for name in NUMBERS:
        number(name, 0)
    if number("MASTER_PORT", 1) > 65535:
        raise OwnError(f"the environment variable MASTER_PORT is {os.environ['MASTER_PORT']}: should be below 65536")
    rank, size = _first(RANKS) or "RANK", _first(SIZES) or "WORLD_SIZE"
    pairs = [(rank, size), ("LOCAL_RANK", size)]
    if "LOCAL_WORLD_SIZE" in os.environ:
        pairs.append(("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    for place, count in pairs:
        if number(place, 0) >= number(count, 1):
            raise OwnError(
                f"the environment variable {place} is {os.environ[place]}, and {count} is"
                f" {os.environ.get(count, 'not set')}: a rank is below the number of processes; {ADVICE}"
            )
    if "LOCAL_RANK" in os.environ or number(size, 1) > 1:
        given = size if size in os.environ else "LOCAL_RANK"
        require(f"{given}={os.environ[given]} in the environment", needs_all=False)
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if dynamo.lower() != "no":
        raise UserError(
            f"the launcher asks for torch.compile (dynamo_backend: {dynamo}), which this program does not use: set it"
            " to 'no' in the config of Accelerate, or pass --dynamo_backend no"
        )


def require(what: str, needs_all: bool = True) -> None:
    """Check that the variables by which the processes of a run find each other are set.

    Args:
        what: names what needs them in the error.
        needs_all: include the variables that Accelerate can do without on CPUs.

    Raises:
        UserError: a variable is missing, or MASTER_ADDR cannot be resolved.
    """
    wanted = [RANKS, ("MASTER_ADDR",)] + ([("WORLD_SIZE",), ("LOCAL_RANK",), ("MASTER_PORT",)] if needs_all else [])
    missing = [names[0] for names in wanted if _first(names) is None]
    if missing:
        raise OwnError(f"{what} needs {', '.join(missing)} too; {ADVICE}")
    address = os.environ["MASTER_ADDR"]
    for left in reversed(range(TRIES)):
        try:
            socket.getaddrinfo(address, None)
            return
        except (socket.gaierror, UnicodeError) as error:
            if left and getattr(error, "errno", None) == socket.EAI_AGAIN:
                time.sleep(PAUSE)
                continue
            reason = getattr(error, "strerror", None) or "not a name"
            raise OwnError(
                f"the environment variable MASTER_ADDR is {address!r}: {reason}; it should be the name or address of"
                " the machine of rank 0"
            ) from None


def is_main() -> bool:
    """Return whether this process has rank 0 or no rank."""
    try:
        return number("RANK", 0) == 0
    except UserError:  # an invalid rank is an error of this process alone
        return True


def leave_code(code: int) -> None:
    """Write the exit code to the file named by DISTVAE_EXIT_FILE, if set, because launchers hide the code."""
    path = os.environ.get("DISTVAE_EXIT_FILE")
    if not path:
        return
    try:
        Path(path).write_text(f"{code}\n", encoding="ascii")
    except OSError as error:
        print(
            f"distvae: WARNING DISTVAE_EXIT_FILE={path}: cannot be written: {error.strerror}; the exit code is {code}",
            file=sys.stderr,
        )


def _first(names: tuple[str, ...]) -> str | None:
    """Return the first of these variables that is set."""
    return next((name for name in names if name in os.environ), None)
