"""Load a config that should be refused, and write a key and a value."""

import dataclasses

import pytest
import yaml

from distvae.config.keys import flatten
from distvae.config.schema import Config
from distvae.config.yaml import ConfigError

SECTIONS = [
    field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(getattr(Config(), field.name))
]

KEYS = [key for key, _ in flatten(Config())]


def refused(load, text: str | bytes = "", *overrides: str) -> ConfigError:
    """The error of a config that must be refused, checked to be one line."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def as_yaml(key: str, value) -> str:
    """``a.b`` and a value as a YAML document."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return yaml.safe_dump(value)


def as_override(key: str, value) -> str:
    return f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}"
