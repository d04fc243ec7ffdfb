"""Config files and override values as plain Python values: YAML 1.2's core schema, nothing dropped or guessed."""

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

# Bytes of a config file, at most.
_LARGEST = 2**24


class ConfigError(UserError):
    """A config that cannot be used; ``run`` is the folder it names, if it gets that far."""

    def __init__(self, message: str, run: str | None = None):
        super().__init__(message)
        self.run = run


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `no` is a word, `2024-02-03` and `12:30` are texts, `1e-3` is a number."""

    yaml_implicit_resolvers = {}  # without PyYAML's own, which are YAML 1.1's

    if TYPE_CHECKING:

        def peek_event(self) -> Any: ...  # which PyYAML's stubs leave untyped

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        mark = event.start_mark
        if getattr(event, "tag", None) not in (None, "!"):
            # No setting needs one, and what PyYAML's own stumble over is not always a YAMLError (`!!bool x`).
            raise yaml.MarkedYAMLError(None, None, f"tags such as {event.tag} are not read", mark)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            # Aliases of aliases of lists would unfold without end.
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
    """Quotes what ``_Loader`` would not read as text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_tree(path: str | Path) -> dict[str, Any]:
    """Return a YAML file's keys and values as plain ones, without its format number.

    Raises:
        FormatError: a newer version wrote the file.
        ConfigError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            # A pipe goes to one process of a run, and may never end.
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
    """Return plain keys and values as YAML with a format number, which ``read_tree`` reads back."""
    return yaml.dump(stamped(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _meant(path: Path) -> str:
    """A hint at the configs that a path to none may mean, which lacks its ending or its folder."""
    name = path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml"
    found = [other for other in (path.with_name(name), Path("configs", path.parent, name)) if os.path.isfile(other)]
    found = found[:1] or sorted(other for other in Path("configs").rglob("*.y*ml") if other.name == name)
    return f"; did you mean {' or '.join(map(str, found))}?" if found else ""


def _read(text: str) -> Any:
    """YAML → plain values.

    Raises:
        yaml.YAMLError, ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OverflowError:
        raise ValueError("it has an escape beyond \\U0010FFFF") from None


# What YAML would drop from a value without a word.
_DROPPED = (yaml.AnchorToken, yaml.DirectiveToken, yaml.DocumentStartToken, yaml.DocumentEndToken)


def read_value(text: str) -> Any:
    """Read an override's value. A `#` in it is text, where YAML would drop it, and what follows it, as a comment.

    Raises:
        yaml.YAMLError, ValueError: it is not a YAML value, or a part of it would be dropped.
    """
    text = text.strip()
    tokens = [token for token in yaml.scan(text, _Loader) if token.end_mark.index > token.start_mark.index]
    whole = not text or (tokens and tokens[0].start_mark.index == 0 and tokens[-1].end_mark.index == len(text))
    if not tokens or (len(tokens) == 1 and isinstance(tokens[0], yaml.ScalarToken) and tokens[0].plain):
        if len(text.splitlines()) > 1:
            raise ValueError("it has several lines")
        return _read(text) if whole else text
    if not whole or any(isinstance(token, _DROPPED) for token in tokens):
        raise ValueError("a part of it is not read")
    return _read(text)
