"""Roles of settings, declared at their fields: ``workers: Annotated[Positive | None, Role.PLACE] = None``.

The role of a section is that of all its settings. A setting may have several roles. If it has none, all results of a
run depend on it, and its value cannot change.
"""

from __future__ import annotations

from enum import Enum, auto


class Role(Enum):
    # A location, a resource, or a faster way: no result depends on it, up to rounding.
    PLACE = auto()
    # Names content, which is compared in its place.
    SOURCE = auto()
    # How far a run goes, or what it evaluates: may change when the run resumes.
    EXTENT = auto()
    # Pretraining does not depend on it.
    AFTER_PRETRAINING = auto()
    # Tells runs of one method apart.
    PER_RUN = auto()
    # The processes of a run may have different values.
    PER_PROCESS = auto()
    # Population-based training may change it during a run: neither shapes of weights nor sentences depend on it.
    MUTABLE = auto()
