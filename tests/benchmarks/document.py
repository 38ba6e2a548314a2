"""The JSON documents that figures are kept in: other runs may have left other parts there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson


def read(path: Path) -> dict[str, Any]:
    """What lies there; nothing where there is no document yet."""
    try:
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found


def write(path: Path, document: dict[str, Any]) -> None:
    """Put the whole document there; whoever reads it meanwhile sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    whole.replace(path)


def add(path: Path, part: str, found: dict[str, Any]) -> None:
    """Put one part there, beside what there is."""
    write(path, read(path) | {part: found})
