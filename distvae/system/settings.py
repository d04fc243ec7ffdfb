"""Types that config fields share."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from distvae.system.errors import UserError

RULES = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# Limits of 32 bits, beyond which torch and numpy fail with errors of their own.
LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 1e38


def whole(name: str, value: object, least: int, most: int | None = LARGEST_INT) -> int:
    """Return a whole number from ``least`` to ``most``, which may be numpy's. None: no upper limit.

    Args:
        name: names it in errors.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise UserError(f"{name} {value!r}: should be a whole number of at least {least}")
    if most is not None and int(value) > most:
        raise UserError(f"{name} {value!r}: should be at most {most}")
    return int(value)


def _no_nul(path: str) -> str:
    if "\0" in path:
        raise PydanticCustomError("path", "a path cannot contain a NUL character")
    return path


def at_home(path: str) -> str:
    """Replace a leading ``~`` or ``~user`` by the home directory."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise PydanticCustomError("path", "no such user, so its home directory is unknown") from None


Name = Annotated[str, Field(min_length=1)]
Location = Annotated[str, Field(min_length=1), AfterValidator(_no_nul)]
Folder = Annotated[Location, AfterValidator(at_home)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Positive = Annotated[int, Field(ge=1, le=LARGEST_INT)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST_FLOAT)]
AboveZero = Annotated[float, Field(gt=0, le=LARGEST_FLOAT)]
Probability = Annotated[float, Field(ge=0, lt=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
