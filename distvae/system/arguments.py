"""Command lines: options may come anywhere, and a setting not written as ``key=value`` gets a hint."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from distvae.system.errors import UserError, tell
from distvae.system.settings import LARGEST_INT


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line.

    Args:
        settings: dotted keys that ``overrides`` on this command line may set.
    """

    def __init__(self, *, settings: Iterable[str] = (), **options: Any):
        super().__init__(**options)
        keys = list(settings)
        self._settings = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
        self._intermixing = False

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # Subcommands have parsers of their own. Some versions of Python call this method for each of the two passes
        # over intermixed arguments.
        if self._subparsers is not None or self._intermixing:
            return super().parse_known_args(args, namespace)
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_settings_as_options(words)
        self._intermixing = True
        try:
            found, rest = self.parse_known_intermixed_args(words, namespace)
        finally:
            self._intermixing = False
        if self._settings:
            first = getattr(found, self._get_positional_actions()[0].dest)
            self._refuse_misplaced(first if isinstance(first, str) else None, found.overrides)
        return found, rest

    def error(self, message: str) -> NoReturn:
        tell(UserError(f"{message}; usage: {' '.join(self.format_usage().split()).removeprefix('usage: ')}"))
        sys.exit(2)

    def _refuse_settings_as_options(self, words: Sequence[str]) -> None:
        """Refuse ``--key value``, ``--key=value`` and ``-key=value``."""
        for word, following in pairwise([*words, ""]):
            if word == "--":
                return
            name, equals, value = word.partition("=")
            if not word.startswith("-") or any(option.startswith(name) for option in self._option_string_actions):
                continue
            if keys := self._meant(name):
                if not equals and not following.startswith("-") and "=" not in following:
                    value = following
                self._stop(f"{name} is not an option; write {_spelt(keys, value)}")

    def _refuse_misplaced(self, config: str | None, overrides: Sequence[str]) -> None:
        """Refuse ``key value``, ``key = value``, a setting before the config, and a second config."""
        if config is not None and "=" in config and config.partition("=")[0] in self._settings:
            self._stop(f"{config!r} is not a config; the config comes before the settings")
        for i, word in enumerate(overrides):
            key, equals, value = word.partition("=")
            following = [*overrides[i + 1 : i + 3], "", ""]
            apart = following[1] if following[0] == "=" else following[0].removeprefix("=")
            if value:
                continue
            if (not equals or (apart and "=" not in apart)) and (keys := self._meant(key)):
                self._stop(f"{word!r} is not key=value; write {_spelt(keys, apart)}")
            if not equals and config is not None and (word.endswith((".yaml", ".yml")) or Path(word).is_file()):
                self._stop(f"{word!r} is a second config; give one config, then key=value")

    def _meant(self, name: str) -> list[str]:
        """Return the settings that a word may mean: with dashes, without its section, or misspelt."""
        name = name.lstrip("-").replace("-", "_")
        if not name:
            return []
        if name in self._settings:
            return [name]
        endings = [key for key in self._settings if key.endswith(f".{name}")]
        return endings or difflib.get_close_matches(name, self._settings, n=1, cutoff=0.8)

    def _stop(self, message: str) -> NoReturn:
        tell(UserError(message))
        sys.exit(2)


class PrintCompletion(argparse.Action):
    """Print a script that has a shell complete commands, options, choices and file names, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: str | None = None) -> None:
        import shtab  # late, because only this needs it

        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        for command in commands.choices.values():
            for argument in command._get_positional_actions():
                setattr(argument, "complete", shtab.FILE)  # noqa: B010
        print(shtab.complete(parser, shell))
        parser.exit()


def integer(least: int, most: int | None = LARGEST_INT) -> Callable[[str], int]:
    """Return a ``type`` of arguments: a whole number from ``least`` to ``most``. None: no upper limit."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: should be a whole number of at least {least}")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r}: should be at most {most}")
        return int(text)

    return parse


def counts(text: str) -> list[int | None]:
    """Parse whole numbers from 1, separated by commas: the ``type`` of an argument. ``all`` is None."""
    one = integer(1)
    try:
        return [None if part == "all" else one(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r}: should be whole numbers from 1 or all, as in 10,100,all") from None


def file(text: str) -> Path:
    """Parse the name of a file to write: the ``type`` of an argument."""
    if text in ("", "-"):
        raise argparse.ArgumentTypeError(f"{text!r}: should be the name of a file")
    return Path(text)


def names(text: str) -> tuple[str, ...]:
    """Parse names, separated by commas: the ``type`` of an argument."""
    found = tuple(text.split(","))
    if not all(found) or len({*found}) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: should be different names with commas between")
    return found


def add_probes(parser: argparse.ArgumentParser) -> None:
    """Add the options of a report that probe its runs first."""
    parser.add_argument(
        "--probe", action="store_true", help="add which labels can be read from z of each run; see distvae probe"
    )
    parser.add_argument(
        "--label", type=names, default=(), metavar="COLUMN,COLUMN",
        help="for --probe: columns of labels in the data (default: those that the runs kept)",
    )  # fmt: skip


def check_probes(options: argparse.Namespace) -> None:
    """Check the options of ``add_probes`` together.

    Raises:
        UserError: there are columns, but nothing is to be probed.
    """
    if options.label and not options.probe:
        raise UserError("--label: names columns for --probe; give both")


def _spelt(keys: Sequence[str], value: str) -> str:
    """Return ``key=value`` for each key, as to be typed in a shell."""
    return " or ".join(shlex.quote(f"{key}={value}") if value else f"{key}=VALUE" for key in keys)
