"""Precision and recall on labelled texts, per type."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.pii_quality import TYPES, Score, load, score

from otel.scrub import Scrubber
from otel.table import load_table


@pytest.fixture(scope="module")
def scores(test_data: Path) -> dict[str, Score]:
    scrubber = Scrubber(load_table(), None)
    return score(load(test_data), lambda text: [(found.type, found.start, found.end) for found in scrubber.find(text)])


@pytest.mark.parametrize("label", TYPES)
def test_precision_and_recall(scores: dict[str, Score], label: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At least 0.95 each where there are 50 labels or more, at most one error otherwise."""
    result = scores[label]
    with capsys.disabled():
        print(f"\n{label:14} n={result.n:3} recall={result.recall:.3f} precision={result.precision:.3f}", end=" ")
    assert result.n
    assert result.clears


@pytest.mark.parametrize(
    ("result", "clears"),
    [
        (Score(n=100, missed=5, wrong=5), True),
        (Score(n=100, missed=6, wrong=0), False),
        (Score(n=100, missed=0, wrong=6), False),
        (Score(n=50, missed=3, wrong=0), False),
        (Score(n=49, missed=1, wrong=0), True),
        (Score(n=49, missed=0, wrong=1), True),
        (Score(n=49, missed=1, wrong=1), False),
    ],
)
def test_what_clears_the_mark(result: Score, clears: bool) -> None:
    assert result.clears is clears


def test_a_finding_counts_where_it_covers_a_label_and_is_wrong_where_it_touches_none() -> None:
    spans = [{"start_position": 10, "end_position": 20, "entity_type": "EMAIL_ADDRESS"}]
    texts = [{"full_text": "x" * 40, "spans": spans}]
    for start, end, expected in ((10, 20, Score(1, 0, 0)), (11, 25, Score(1, 1, 0)), (20, 30, Score(1, 1, 1))):
        assert score(texts, lambda _, a=start, b=end: [("EMAIL", a, b), ("PHONE", 0, 5)])["EMAIL_ADDRESS"] == expected
