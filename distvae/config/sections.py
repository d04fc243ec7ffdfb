"""Sections of a config in which a choice has options of its own, as flat keys beside it.

A choice is a field whose type is a union of components, which ``name`` tells apart::

    @dataclass(frozen=True, config=RULES)
    class OptimizerConfig(Section):
        algorithm: Annotated[SGD | AdamW, Field(discriminator="name", alias="name")] = SGD()
        batch_size: Positive = 32

The key ``optimizer.name`` chooses a component; without an alias it is ``optimizer.algorithm``. The other fields of all
components are keys such as ``optimizer.weight_decay``. An option that no chosen component declares is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from pydantic import ValidationInfo, model_serializer, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, PydanticCustomError

from distvae.system.settings import RULES

# Type of the validation error of an option that no chosen component declares.
UNREAD = "unread_option"


@plain(frozen=True)
class Choice:
    """A field of a section that chooses a component."""

    field: str
    key: str  # in files, where it may have another name than the field
    kinds: Mapping[str, type]  # components by name
    options: Mapping[str, Mapping[str, Any]]  # options of each component, with their defaults
    default: str  # name of a component


@dataclass(frozen=True, config=RULES)
class Section:
    """A section with choices. In Python, too, it takes names and options of components by their keys."""

    @model_validator(mode="before")
    @classmethod
    def _give_each_component_its_options(cls, values: Any, info: ValidationInfo) -> Any:
        if isinstance(values, ArgsKwargs):
            if values.args:
                raise ValueError(f"{cls.__name__} takes its settings by name")
            given = dict(values.kwargs or {})
            for field, key in keys_of(cls).items():  # `dataclasses.replace` gives fields
                if field in given:
                    given[key] = given.pop(field)
        elif isinstance(values, dict):
            given = values
        else:
            return values
        options = options_of(cls)
        found = {key: value for key, value in given.items() if key not in options}
        read: set[str] = set()
        for choice in choices_of(cls):
            chosen = given.get(choice.key, choice.default)
            if isinstance(chosen, str) and chosen in choice.kinds:
                own = {option: given[option] for option in choice.options[chosen] if option in given}
                read |= own.keys()
                found[choice.key] = {"name": chosen, **own} if info.mode == "json" else choice.kinds[chosen](**own)
            elif not isinstance(chosen, tuple(choice.kinds.values())):
                found[choice.key] = {"name": chosen}  # pydantic refuses it and lists the names
        stored = bool((info.context or {}).get("stored"))
        for option, default in options.items():
            if option in given and option not in read and given[option] != default and not stored:
                names = {choice.key: _name(found[choice.key]) for choice in choices_of(cls)}
                context = {"option": option, "value": given[option], "default": default, "chosen": names}
                raise PydanticCustomError(UNREAD, "no chosen component reads {option}", context)
        return found

    @model_serializer
    def flat(self) -> dict[str, Any]:
        """Return the section as its keys in files, without options that no chosen component declares."""
        found: dict[str, Any] = {}
        choices = {choice.field: choice for choice in choices_of(type(self))}
        for field, key in keys_of(type(self)).items():
            value, choice = getattr(self, field), choices.get(field)
            if choice is None:
                found[key] = value
            else:
                found[key] = value.name
                found |= {option: getattr(value, option) for option in choice.options[value.name]}
        return found


# Not functools.cache, because mypy takes pydantic's data classes for unhashable.
_KEYS: dict[type, Mapping[str, str]] = {}


def keys_of(section: type) -> Mapping[str, str]:
    """Return the fields of a data class, each with its key in files: its name, unless it has an alias."""
    if section not in _KEYS:
        hints = get_type_hints(section, include_extras=True)
        _KEYS[section] = {field.name: _key(field.name, hints[field.name]) for field in fields(section)}
    return _KEYS[section]


def _key(name: str, hint: Any) -> str:
    marks = getattr(hint, "__metadata__", ())
    return next((mark.alias for mark in marks if isinstance(mark, FieldInfo) and mark.alias), name)


_CHOICES: dict[type, tuple[Choice, ...]] = {}


def choices_of(section: type[Section]) -> tuple[Choice, ...]:
    """Return the choices of a section."""
    if section not in _CHOICES:
        _CHOICES[section] = tuple(_choices(section))
    return _CHOICES[section]


def _choices(section: type[Section]) -> Iterator[Choice]:
    hints = get_type_hints(section, include_extras=True)
    for field in fields(section):
        marks = getattr(hints[field.name], "__metadata__", ())
        info = next((mark for mark in marks if isinstance(mark, FieldInfo) and mark.discriminator), None)
        if info is not None:
            kinds = {kind.name: kind for kind in get_args(get_args(hints[field.name])[0])}
            options = {name: declared(kind) for name, kind in kinds.items()}
            yield Choice(field.name, info.alias or field.name, kinds, options, field.default.name)


def declared(component: type) -> dict[str, Any]:
    """Return the options that a component declares, with their defaults."""
    return {field.name: field.default for field in fields(component) if field.name != "name"}


def options_of(section: type[Section]) -> dict[str, Any]:
    """Return the options of all components of a section, with their defaults."""
    kinds = (own for choice in choices_of(section) for own in choice.options.values())
    return {option: default for own in kinds for option, default in own.items()}


def readers_of(section: type[Section], option: str) -> dict[str, tuple[str, ...]]:
    """Return the components that declare an option, by the key that chooses them."""
    found = {
        choice.key: tuple(name for name, own in choice.options.items() if option in own)
        for choice in choices_of(section)
    }
    return {key: names for key, names in found.items() if names}


def _name(component: Any) -> Any:
    return component["name"] if isinstance(component, dict) else component.name
