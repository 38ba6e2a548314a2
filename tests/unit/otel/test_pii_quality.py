"""Precision and recall on labelled texts, per type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from otel.scrub import Scrubber
from otel.table import load_table

# The label in the data, and the types of ours that stand for it.
TYPES = {
    "EMAIL_ADDRESS": {"EMAIL"},
    "US_SSN": {"US_SSN"},
    "CREDIT_CARD": {"CREDIT_CARD"},
    "IP_ADDRESS": {"IPV4", "IPV6"},
    "PHONE_NUMBER": {"PHONE"},
    "IBAN_CODE": {"IBAN"},
}
ENOUGH = 50


class Score(NamedTuple):
    n: int
    missed: int
    wrong: int

    @property
    def recall(self) -> float:
        return 1 - self.missed / self.n

    @property
    def precision(self) -> float:
        found = self.n - self.missed
        return found / (found + self.wrong)


def score(texts: list[dict[str, Any]], label: str) -> Score:
    """A label counts as found if a finding covers it whole; a finding is wrong if it touches no such label."""
    scrubber = Scrubber(load_table(), None)
    n = missed = wrong = 0
    for text in texts:
        labels = [(s["start_position"], s["end_position"]) for s in text["spans"] if s["entity_type"] == label]
        found = [(f.start, f.end) for f in scrubber.find(text["full_text"]) if f.type in TYPES[label]]
        n += len(labels)
        missed += sum(not any(a <= start and end <= b for a, b in found) for start, end in labels)
        wrong += sum(not any(a < end and start < b for start, end in labels) for a, b in found)
    return Score(n, missed, wrong)


@pytest.mark.parametrize("label", TYPES)
def test_precision_and_recall(test_data: Path, label: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = json.loads((test_data / "pii_synth_dev.json").read_text(encoding="utf-8"))
    result = score(texts, label)
    with capsys.disabled():
        print(f"\n{label:14} n={result.n:3} recall={result.recall:.3f} precision={result.precision:.3f}", end=" ")
    if result.n >= ENOUGH:
        assert result.recall >= 0.95
        assert result.precision >= 0.95
    else:
        assert result.missed + result.wrong <= 1
