"""Every setting of a config with its type, default, choices and meaning, for ``distvae config``.

The meaning of a setting is the comment above its field, that of a section or of a component its docstring.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from distvae.config.keys import either, format_readers, readers
from distvae.config.schema import Config
from distvae.config.sections import Choice, Section, choices_of
from distvae.system.errors import UserError
from distvae.system.settings import LARGEST_FLOAT, LARGEST_INT

SECTION = "section"
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Setting:
    """A setting, or a section of settings."""

    key: str
    type: str  # ``SECTION`` for a section
    default: Any  # a plain value; None for a section
    choices: dict[str, str | None]  # what each means, unless the setting's own meaning says so
    meaning: str
    read_by: str  # the components that read it, as ``readers`` formats them; empty if it is always read


def describe(keys: Sequence[str] = ()) -> list[Setting]:
    """Return the settings of these keys and sections, or all, in the order of the schema.

    Raises:
        UserError: a key is unknown; the error names the nearest.
    """
    known = {setting.key: setting for setting in _section(Config, Config(), "")}
    for key in keys:
        if key not in known:
            near = [other for other in known if other.endswith(f".{key}")]
            near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise UserError(f"unknown key {key}" + (f"; did you mean {either(near)}?" if near else ""))
    return [
        setting
        for setting in known.values()
        if not keys or any(setting.key == key or setting.key.startswith(f"{key}.") for key in keys)
    ]


def _section(kind: type, values: Any, prefix: str) -> Iterator[Setting]:
    """Yield the settings of a section.

    Args:
        values: the section with its defaults.
        prefix: of its keys.
    """
    choices = {choice.field: choice for choice in choices_of(kind)} if issubclass(kind, Section) else {}
    hints, meanings = get_type_hints(kind, include_extras=True), comments(kind)
    for field in fields(kind):
        name, value = field.name, getattr(values, field.name)
        if name in choices:
            choice = choices[name]
            own: dict[str, str | None] = {component: _summary(kind) for component, kind in choice.kinds.items()}
            yield Setting(f"{prefix}{choice.key}", either(list(own)), value.name, own, meanings[name], "")
        elif is_dataclass(value):
            meaning = meanings[name] or _summary(type(value))
            yield Setting(f"{prefix}{name}", SECTION, None, {}, meaning, "")
            yield from _section(type(value), value, f"{prefix}{name}.")
        else:
            hint = hints[name]
            marks = getattr(hint, "__metadata__", ())
            key = next((mark.alias for mark in marks if isinstance(mark, FieldInfo) and mark.alias), name)
            yield Setting(f"{prefix}{key}", type_of(hint), value, _values(hint), meanings[name], "")
    options = dict.fromkeys(option for choice in choices.values() for own in choice.options.values() for option in own)
    for option in options:
        yield _option(f"{prefix}{option}", list(choices.values()), option)


def _option(key: str, choices: Sequence[Choice], option: str) -> Setting:
    """Return an option of components. Where they differ in its default or meaning, the meaning has each."""
    found = [
        (name, kind, choice.options[name][option])
        for choice in choices
        for name, kind in choice.kinds.items()
        if option in choice.options[name]
    ]
    _, first, default = found[0]
    meanings: dict[str, list[str]] = {}
    for name, kind, own in found:
        text = comments(kind)[option] + ("" if own == default else f" Default {own}.")
        meanings.setdefault(text, []).append(name)
    meaning, *others = meanings
    if others:
        meaning = " ".join(f"{either(names)}: {text}" for text, names in meanings.items())
    hint = get_type_hints(first, include_extras=True)[option]
    return Setting(key, type_of(hint), default, _values(hint), meaning, format_readers(readers(Config, key)))


# -- Meanings ----------------------------------------------------------------------------------------------------------


@cache
def comments(kind: type) -> Mapping[str, str]:
    """Return the comment above each field of a data class, as one line; empty where there is none."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        (tree,) = ast.parse(source).body
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above = node.lineno - 1
                while lines[above - 1].lstrip().startswith("#"):
                    above -= 1
                found[node.target.id] = " ".join(line.strip(" #") for line in lines[above : node.lineno - 1])
    return found


def _summary(kind: type) -> str:
    """Return the first paragraph of a class's docstring as one line."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split()).replace("``", "`")


# -- Types -------------------------------------------------------------------------------------------------------------


def type_of(hint: Any) -> str:
    """Return a field's type in words, with its bounds: ``whole number ≥ 1 or null``."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        if any(isinstance(mark, AfterValidator) for mark in marks):  # which only paths have
            return "path"
        limits = [limit for mark in marks if isinstance(mark, FieldInfo) for limit in mark.metadata]
        return f"{type_of(kind)} {' and '.join(filter(None, map(_bound, limits)))}".rstrip()
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(type_of, get_args(hint)))
    if get_origin(hint) is Literal:
        return either(get_args(hint))
    if get_origin(hint) is tuple:
        item = type_of(get_args(hint)[0])
        return f"list of ({item})" if " or " in item else f"list of {item}"
    return "null" if hint is NoneType else _NAMES[hint]


def _bound(limit: object) -> str:
    match limit:
        case Ge(ge=least):
            return f"≥ {least}"
        case Gt(gt=least):
            return f"> {least}"
        case Le(le=most) if most not in (LARGEST_INT, LARGEST_FLOAT):
            return f"≤ {most:g}"
        case Lt(lt=most):
            return f"< {most}"
    return ""


def _values(hint: Any) -> dict[str, str | None]:
    """Return the choices of a literal type, also within ``Annotated`` and ``| None``."""
    if get_origin(hint) is Literal:
        return dict.fromkeys(get_args(hint))
    return {value: None for part in get_args(hint) if get_origin(part) for value in _values(part)}
