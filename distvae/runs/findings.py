"""What a command finds about a model, as a JSON file of its run folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distvae.system.files import save_json
from distvae.system.formats import stamped


@dataclass(frozen=True)
class Findings:
    """Contents of such a file: ``probes.json``, ``posterior.json``, ``gain.json``."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return stamped(asdict(self))

    def save(self, path: Path) -> None:
        """Write them.

        Raises:
            UserError: the file cannot be written.
        """
        save_json(path, self.as_dict())
