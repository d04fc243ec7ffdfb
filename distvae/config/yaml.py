"""Read config files and override values as plain Python values, by YAML 1.2's core schema."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distvae.system.errors import UserError
from distvae.system.formats import KEY, check_format, stamped

# Bytes of the largest config file.
_LARGEST = 2**24


class ConfigError(UserError):
    """An invalid config. ``run`` is the run folder that it names, if that much could be read."""

    def __init__(self, message: str, run: str | None = None):
        super().__init__(message)
        self.run = run


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `no`, `2024-02-03` and `12:30` are strings, `1e-3` is a number."""

    yaml_implicit_resolvers = {}  # PyYAML's own are YAML 1.1's

    if TYPE_CHECKING:

        def peek_event(self) -> Any: ...  # which PyYAML's stubs leave untyped

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        mark = event.start_mark
        if getattr(event, "tag", None) not in (None, "!"):
            # No setting needs a tag, and PyYAML raises other errors than YAMLError for some (`!!bool x`).
            raise yaml.MarkedYAMLError(None, None, f"tags such as {event.tag} are not supported", mark)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            # Nested aliases of lists could expand to any size.
            raise yaml.MarkedYAMLError(None, None, "an alias can only stand for a single value", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value} is given twice", key.start_mark)
            names.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


_FLOAT = r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
for _tag, _pattern, _firsts in [
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
]:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would read as something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_tree(path: str | Path) -> dict[str, Any]:
    """Return a YAML file's keys and values, without its format number.

    Raises:
        FormatError: a newer version wrote the file.
        ConfigError: the file cannot be read, or has no keys and values.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            # Only one process of a run could read a pipe, and it may never end.
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
        if path.stat().st_size > _LARGEST:
            raise OSError(errno.EFBIG, f"it has {path.stat().st_size:,} bytes, more than any config")
        tree = _read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError):
            reason += _meant(path)
        raise ConfigError(f"{path}: cannot be read as a config: {reason}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: should hold keys and values, such as `seed: 1`")
    check_format(tree, path)
    tree.pop(KEY, None)
    return tree


def dump_tree(tree: dict[str, Any]) -> str:
    """Return keys and values as YAML with a format number, which ``read_tree`` reads back."""
    return yaml.dump(stamped(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _meant(path: Path) -> str:
    """Return a hint at the configs that a wrong path may mean, without its suffix or folder."""
    name = path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml"
    found = [other for other in (path.with_name(name), Path("configs", path.parent, name)) if os.path.isfile(other)]
    found = found[:1] or sorted(other for other in Path("configs").rglob("*.y*ml") if other.name == name)
    return f"; did you mean {' or '.join(map(str, found))}?" if found else ""


def _read(text: str) -> Any:
    """Parse YAML into plain values.

    Raises:
        yaml.YAMLError, ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OverflowError:
        raise ValueError("it has an escape beyond \\U0010FFFF") from None


# Tokens that YAML would drop silently.
_DROPPED = (yaml.AnchorToken, yaml.DirectiveToken, yaml.DocumentStartToken, yaml.DocumentEndToken)


def read_value(text: str) -> Any:
    """Read an override's value as YAML without comments: a `#` is text.

    Raises:
        yaml.YAMLError, ValueError: it is not a YAML value, or part of it would be dropped.
    """
    text = text.strip()
    if text == "-":  # standard input, and not a list of nothing
        return text
    tokens = [token for token in yaml.scan(text, _Loader) if token.end_mark.index > token.start_mark.index]
    whole = not text or (tokens and tokens[0].start_mark.index == 0 and tokens[-1].end_mark.index == len(text))
    if not tokens or (len(tokens) == 1 and isinstance(tokens[0], yaml.ScalarToken) and tokens[0].plain):
        if len(text.splitlines()) > 1:
            raise ValueError("it has several lines")
        return _read(text) if whole else text
    if not whole or any(isinstance(token, _DROPPED) for token in tokens):
        raise ValueError("part of it would be dropped")
    return _read(text)
