"""The dotted keys of a config, such as ``kl.target_rate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from distvae.config.sections import Section, choices_of, keys_of, options_of, readers_of
from distvae.system.roles import Role

# A dotted key, its roles, and whether it is a section.
_Key = tuple[str, frozenset[Role], bool]


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a config or of plain values, with their values.

    Options that no chosen component reads are left out.
    """
    items = config.flat() if isinstance(config, Section) else vars(config) if is_dataclass(config) else config
    for key, value in items.items():
        if is_dataclass(value) or isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys(kind: type) -> Iterator[str]:
    """Yield the dotted keys of a data class, sections included."""
    for key, _, _ in _keys(kind):
        yield key


def keys_with(kind: type, *roles: Role) -> frozenset[str]:
    """Return the dotted keys of a data class that have any of these roles, without sections."""
    return frozenset(key for key, own, section in _keys(kind) if not section and not own.isdisjoint(roles))


def fields_with(kind: type, *roles: Role) -> frozenset[str]:
    """Return the fields of a data class that have any of these roles."""
    return frozenset(name for name, _, own in _fields(kind) if not own.isdisjoint(roles))


def _keys(kind: type, prefix: str = "", inherited: frozenset[Role] = frozenset()) -> Iterator[_Key]:
    choices = {choice.field: choice for choice in choices_of(kind)} if issubclass(kind, Section) else {}
    options: dict[str, frozenset[Role]] = {}
    keys = keys_of(kind)
    for name, hint, own in _fields(kind):
        if name in choices:
            yield f"{prefix}{keys[name]}", own | inherited, False
            for component in choices[name].kinds.values():
                for option, _, roles in _fields(component):
                    options[option] = options.get(option, frozenset()) | roles | own
        elif isinstance(hint, type) and is_dataclass(hint):
            yield f"{prefix}{name}", own | inherited, True
            yield from _keys(hint, f"{prefix}{name}.", own | inherited)
        else:
            yield f"{prefix}{keys[name]}", own | inherited, False
    options.pop("name", None)
    for option, own in options.items():
        yield f"{prefix}{option}", own | inherited, False


@cache
def _fields(kind: type) -> tuple[tuple[str, Any, frozenset[Role]], ...]:
    """Return a data class's fields: name, type, roles."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (field.name, get_args(hint)[0] if get_origin(hint) is Annotated else hint, _roles(hint))
        for field in fields(kind)
        for hint in (hints[field.name],)
    )


def _roles(hint: Any) -> frozenset[Role]:
    return frozenset(mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Role))


def sections(kind: type) -> dict[str, type[Section]]:
    """Return the sections of a data class that have choices, by name."""
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Section)}


def option_defaults(kind: type) -> dict[str, Any]:
    """Return the dotted keys that only some components read, with their defaults."""
    return {
        f"{name}.{option}": default
        for name, section in sections(kind).items()
        for option, default in options_of(section).items()
    }


def readers(kind: type, key: str) -> dict[str, tuple[str, ...]]:
    """Return the components that read a key, by the key that chooses them; empty if the key is not an option."""
    name, _, option = key.partition(".")
    section = sections(kind).get(name)
    return {} if section is None else _readers(name, section, option)


def unread_options(config: Any) -> dict[str, str]:
    """Return the options that no chosen component of a config reads, and what would read them."""
    found = {}
    for name, section in vars(config).items():
        if isinstance(section, Section):
            read = section.flat()
            for option in options_of(type(section)):
                if option not in read:
                    found[f"{name}.{option}"] = format_readers(_readers(name, type(section), option))
    return found


def _readers(name: str, section: type[Section], option: str) -> dict[str, tuple[str, ...]]:
    return {f"{name}.{key}": components for key, components in readers_of(section, option).items()}


def format_readers(found: Mapping[str, Sequence[str]]) -> str:
    """Format ``readers``: ``kl.policy=linear or cyclical, or kl.free_bits=batch``."""
    return ", or ".join(f"{key}={either(components)}" for key, components in found.items())


def either(names: Sequence[str]) -> str:
    """Format alternatives: ``a, b or c``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
