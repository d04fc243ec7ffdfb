"""What reports are made of: pages that need nothing beside themselves, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distvae.errors import UserError


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder.

    Raises:
        UserError: what fills it is not installed.
    """
    try:
        import jinja2  # late, for no run that trains has a use for it
    except ImportError:
        raise UserError("a report needs jinja2: pip install jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines)


def escaped(text: str) -> str:
    """Text that may stand in a cell or a line of Markdown."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")  # words such as <unk-lower> are no tags
    return " ".join(text.replace("|", "\\|").split())
