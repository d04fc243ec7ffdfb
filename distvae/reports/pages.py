"""Fill the templates of HTML pages. A page is one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distvae.system.errors import UserError, printable


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder.

    Raises:
        UserError: jinja2 is not installed.
    """
    try:
        import jinja2  # here, because training does not need it
    except ImportError:
        raise UserError("a report needs jinja2: pip install jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Plain text may come from a file. Markup is our own.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.get_template(template).render(values)
