"""Suites of labelled prompts: JSON lines with `prompt`, `expected` (comply or refuse) and `category`, or a CSV file.

A CSV file has XSTest's columns (Röttger et al. 2024): `prompt`, `type` (the category) and `label` (safe or unsafe).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

_COLUMNS = ("prompt", "type", "label")
_EXPECTED_OF_LABEL = {"safe": "comply", "unsafe": "refuse"}


class SuiteError(ValueError):
    """A suite file cannot be used; names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class SuitePrompt:
    """One labelled prompt. `expected` is what a good answer does.

    A held-out event has its `example_id`, by which alone reports may name it, and the violation's `code`.
    """

    prompt: str
    expected: str
    category: str
    example_id: str = ""
    code: str = ""

    @property
    def public(self) -> bool:
        """Whether its text may stand in a report."""
        return not self.example_id


def load_suite(path: Path) -> list[SuitePrompt]:
    """Read a suite; raises `SuiteError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SuiteError(f"suite {path} cannot be read ({error.strerror}): correct evaluation.suites") from None
    if path.suffix.lower() == ".csv":
        return _table(path, content)
    lines = content.splitlines()
    return [_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def load_suites(paths: Iterable[Path]) -> list[SuitePrompt]:
    """Read suites; a prompt that stands in several counts once. Raises `SuiteError`, also where labels contradict."""
    found: dict[str, SuitePrompt] = {}
    for path in paths:
        for entry in load_suite(path):
            first = found.setdefault(entry.prompt, entry)
            if first.expected != entry.expected:
                raise SuiteError(
                    f"suite {path} expects {entry.expected!r} of a prompt that is labelled {first.expected!r} "
                    f"before: {entry.prompt[:80]!r}; keep one of the two"
                )
    return list(found.values())


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


def _table(path: Path, content: bytes) -> list[SuitePrompt]:
    try:
        # What spreadsheets write begins with a byte order mark.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SuiteError(f"suite {path} is not UTF-8: save it as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SuiteError(
                f"suite {path} has no column {', '.join(missing)}: a CSV suite has {', '.join(_COLUMNS)}, "
                "label being safe or unsafe"
            )
        return [_row(path, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise SuiteError(
            f"suite {path}, line {reader.line_num} is not CSV ({error}): quote texts with commas"
        ) from None


def _row(path: Path, number: int, row: Mapping[str, str | None]) -> SuitePrompt:
    where = f"suite {path}, line {number}"
    prompt = row["prompt"] or ""
    if not prompt.strip():
        raise SuiteError(f"{where} has no prompt: add a text in column 'prompt'")
    expected = _EXPECTED_OF_LABEL.get((row["label"] or "").strip().lower())
    if expected is None:
        raise SuiteError(f"{where} has the label {row['label']!r}: write 'safe' or 'unsafe'")
    return SuitePrompt(prompt, expected, (row["type"] or "").strip() or "all")
