"""Structured logs: one JSON object a line, or a short text line on a terminal.

A line of work that is traced names trace and span. Records carry what callers pass as `extra` (cycle, event and
trace ids among them). Never pass an event's text or a secret: nothing here could tell it from any other word.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson

from app.telemetry.correlation import log_fields

_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
# Their INFO lines tell of each request or rebalance step; ours tell of what came of it.
_CHATTY = (
    "httpx",
    "httpcore",
    "aiokafka",
    "faust",
    "mode",
    "alembic",
    "kafka",
    "uvicorn",
    "asyncio",
    "matplotlib",
    "mlflow",
)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": _stamp(record),
            "level": record.levelname,
            "service": self.service,
            "logger": record.name,
            "message": record.getMessage(),
            **log_fields(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """Time, level, logger, message and extras on one line, for people."""

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        line = f"{_stamp(record)[11:19]} {record.levelname:7} {record.name}: {record.getMessage()}{extras}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logging(
    service: str,
    level: str = "INFO",
    style: Literal["auto", "json", "text"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Send the process's logs to `stream` (standard error): JSON unless that is a terminal or `style` says else."""
    out = stream or sys.stderr
    text = style == "text" or (style == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter() if text else JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _ORDINARY}
