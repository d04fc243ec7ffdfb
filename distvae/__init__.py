"""LSTM variational autoencoders of text that do not collapse, trained on one CPU or on many GPU nodes.

The public Python API: ``load`` and ``from_pretrained`` give a trained ``TextModel``, and ``fit`` trains one. They are
imported when they are first used, because that takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distvae.api import TextModel, fit, from_pretrained, load
    from distvae.system.errors import UserError

__version__ = "0.1.0"

__all__ = ["TextModel", "UserError", "fit", "from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    if name == "UserError":
        from distvae.system.errors import UserError

        return UserError
    if name in __all__:
        from distvae import api

        return getattr(api, name)
    raise AttributeError(f"module 'distvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
