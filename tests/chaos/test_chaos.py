"""The short form of the chaos suite: one seed, few faults. `make chaos` runs more."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.episode import run

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


def test_nothing_is_lost_or_told_twice_whatever_falls(tmp_path: Path) -> None:
    figures = run(tmp_path, seed=1, count=4)
    assert figures["records"] > 0
    assert len(figures["faults"]) == 4
