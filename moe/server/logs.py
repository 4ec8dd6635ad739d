"""One JSON object a line on stdout."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO


class JsonFormatter(logging.Formatter):
    """A record as one line; what `extra={"fields": {...}}` gave are further keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, event, fields, and the traceback if there is one."""
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # ASCII alone: a log must take whatever a client sent.
        return json.dumps(line, default=repr)


def log_json(stream: TextIO | None = None) -> None:
    """Sends the log of the server and of uvicorn to a stream, stdout by default."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter())
    for name, level in (("moe.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
