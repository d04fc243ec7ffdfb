"""The tracker that writes ``metrics.jsonl``, which resuming and the reports read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from distvae.runs.records import EpochRecord, read_metrics
from distvae.runs.trackers.tracker import Tracker
from distvae.system.files import flush, write_text


class JsonLines(Tracker):
    """Appends a line per epoch to ``metrics.jsonl``, and flushes it to disk at once."""

    def __init__(self, run: Path, step: int, resumed: int = 0):
        self._path = run / "metrics.jsonl"
        write_text(self._path, "".join(_line(record) for record in read_metrics(run) if record.step <= step))

    def epoch(self, record: EpochRecord) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
        flush(self._path)


def _line(record: EpochRecord) -> str:
    return json.dumps(asdict(record), allow_nan=False) + "\n"
