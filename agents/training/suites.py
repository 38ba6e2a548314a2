"""Suites of labelled prompts: JSON lines with `prompt`, `expected` (comply or refuse) and `category`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson


class SuiteError(ValueError):
    """A suite file cannot be used; names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class SuitePrompt:
    """One labelled prompt. `expected` is what a good answer does."""

    prompt: str
    expected: str
    category: str


def load_suite(path: Path) -> list[SuitePrompt]:
    """Read a suite; raises `SuiteError`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SuiteError(f"suite {path} cannot be read ({error.strerror}): correct evaluation.suites") from None
    return [_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _entry(path: Path, number: int, line: bytes) -> SuitePrompt:
    where = f"suite {path}, line {number}"
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise SuiteError(f"{where} is not JSON ({error}): write one object a line") from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str) or not value["prompt"].strip():
        raise SuiteError(f"{where} has no prompt: add a text under 'prompt'")
    if value.get("expected") not in {"comply", "refuse"}:
        raise SuiteError(f"{where} expects {value.get('expected')!r}: write 'comply' or 'refuse'")
    return SuitePrompt(value["prompt"], value["expected"], str(value.get("category", "all")))
