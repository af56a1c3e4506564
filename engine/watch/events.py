"""What happens, as a line of JSON (`--log-format json`)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Literal

Event = Literal["begin", "prepare", "notice", "progress", "quarantine", "stop", "end", "error"]
"""These keep their names and fields (docs/howto/watch-runs.md lists them); new fields may join."""
Level = Literal["info", "warning", "error"]
Value = str | int | float | bool | None


def json_line(level: Level, event: Event, **fields: Value) -> str:
    """One event as a line, its end included, in ASCII; `time` is RFC 3339, UTC."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": moment, "level": level, "event": event, **fields}) + "\n"
