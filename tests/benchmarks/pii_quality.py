"""Precision and recall of finding personal data in labelled texts, per type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TYPES: Mapping[str, frozenset[str]] = {
    "EMAIL_ADDRESS": frozenset({"EMAIL"}),
    "US_SSN": frozenset({"US_SSN"}),
    "CREDIT_CARD": frozenset({"CREDIT_CARD"}),
    "IP_ADDRESS": frozenset({"IPV4", "IPV6"}),
    "PHONE_NUMBER": frozenset({"PHONE"}),
    "IBAN_CODE": frozenset({"IBAN"}),
}
"""The label in the data, and the types of the table that stand for it."""
FILE = "pii_synth_dev.json"
ENOUGH = 50
"""With so many of a type, shares say something."""
LEAST = 0.95

Find = Callable[[str], Iterable[tuple[str, int, int]]]
"""From a text to (type, start, end), in characters."""


class Score(NamedTuple):
    """Of one type: labels in the texts, those missed, and findings where there is none."""

    n: int
    missed: int
    wrong: int

    @property
    def recall(self) -> float:
        """The share of labels that were found."""
        return 1 - self.missed / self.n

    @property
    def precision(self) -> float:
        """The share of findings that are right; 1 where there are none."""
        found = self.n - self.missed
        return found / (found + self.wrong) if found + self.wrong else 1.0

    @property
    def clears(self) -> bool:
        """Recall and precision at least 0.95 each; where there are few labels, at most one error."""
        if self.n >= ENOUGH:
            return self.recall >= LEAST and self.precision >= LEAST
        return self.missed + self.wrong <= 1


def load(folder: Path) -> list[dict[str, Any]]:
    """The labelled texts."""
    texts: list[dict[str, Any]] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return texts


def score(texts: Sequence[Mapping[str, Any]], find: Find) -> dict[str, Score]:
    """Each label's score. A label counts as found if a finding covers it whole; one that touches no label is wrong."""
    found = [list(find(text["full_text"])) for text in texts]
    return {label: _score(texts, found, label, {*types, label}) for label, types in TYPES.items()}


def _score(
    texts: Sequence[Mapping[str, Any]], found: Sequence[Iterable[tuple[str, int, int]]], label: str, types: set[str]
) -> Score:
    n = missed = wrong = 0
    for text, some in zip(texts, found, strict=True):
        labels = [(s["start_position"], s["end_position"]) for s in text["spans"] if s["entity_type"] == label]
        spans = [(start, end) for kind, start, end in some if kind in types]
        n += len(labels)
        missed += sum(not any(a <= start and end <= b for a, b in spans) for start, end in labels)
        wrong += sum(not any(a < end and start < b for start, end in labels) for a, b in spans)
    return Score(n, missed, wrong)
