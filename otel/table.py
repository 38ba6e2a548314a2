"""The table of personal data (`pii.yaml`), read, checked and typed.

The table says what is looked for; `otel.detector` compiles it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import re2
import yaml

from otel.validators import VALIDATORS

TABLE_PATH: Final = Path(__file__).with_name("pii.yaml")
SECRET_VALIDATOR: Final = "secret"  # noqa: S105 - a validator's name
_VERSION: Final = 1


class TableError(ValueError):
    """The table cannot be used: the message names the entry, the value and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PiiPattern:
    """One way in which one kind of personal data is written."""

    name: str
    mask: str
    pattern: str
    validator: str
    bounded: bool
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    prefilter: str = ""
    not_before: str = ""
    context_before: tuple[str, ...] = ()
    context_after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKeys:
    """Which names of keys say that their value is a secret."""

    mask: str
    anywhere: tuple[str, ...]
    word: tuple[str, ...]
    suffixes: tuple[str, ...]
    not_token: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PiiTable:
    """The whole table, in the order of the file (earlier entries win)."""

    patterns: tuple[PiiPattern, ...]
    secret_keys: SecretKeys
    identity_fields: tuple[str, ...]
    subject_fields: tuple[str, ...]


def load_table(path: Path = TABLE_PATH) -> PiiTable:
    """Reads a table; the same path is read once a process. Raises TableError."""
    return _load(path.resolve())


@functools.lru_cache(maxsize=8)
def _load(path: Path) -> PiiTable:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise TableError(f"{path}: the PII table cannot be read ({error})") from error
    if not isinstance(raw, dict) or raw.get("version") != _VERSION:
        raise TableError(f"{path}: expected a mapping with `version: {_VERSION}`")
    try:
        return PiiTable(
            patterns=tuple(_pattern(entry) for entry in raw["patterns"]),
            secret_keys=SecretKeys(**_lists_to_tuples(raw["secret_keys"])),
            identity_fields=tuple(raw["identity_fields"]),
            subject_fields=tuple(raw["subject_fields"]),
        )
    except (KeyError, TypeError) as error:
        raise TableError(f"{path}: {error}; compare with the comments at the head of otel/pii.yaml") from error


def _lists_to_tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _pattern(entry: Mapping[str, Any]) -> PiiPattern:
    pattern = PiiPattern(**_lists_to_tuples(entry))
    if pattern.validator != SECRET_VALIDATOR and pattern.validator not in VALIDATORS:
        known = ", ".join(sorted((*VALIDATORS, SECRET_VALIDATOR)))
        raise TableError(f"{pattern.name}: unknown validator {pattern.validator!r}; known: {known}")
    if pattern.context_before and pattern.context_after:
        raise TableError(f"{pattern.name}: an entry has context_before or context_after, not both")
    for regex in (pattern.pattern, pattern.prefilter, pattern.not_before, *pattern.context_before):
        try:
            re2.compile(regex)
        except re2.error as error:
            raise TableError(f"{pattern.name}: {regex!r} is no RE2 pattern ({error})") from error
    if not pattern.positive or not pattern.negative:
        raise TableError(f"{pattern.name}: positive and negative examples are both needed")
    return pattern
