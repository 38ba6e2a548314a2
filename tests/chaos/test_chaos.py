"""The short form of the chaos suite: four faults, on one broker and SQLite. `make chaos` runs all kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.catalogue import named
from chaos.episode import run
from chaos.site import Topology

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
FAULTS = (
    "router killed (SIGKILL)",
    "Redis filled to its memory limit",
    "training worker killed (SIGKILL)",
    "audit engine answers nonsense",
)


def test_nothing_is_lost_or_told_twice_whatever_falls(tmp_path: Path) -> None:
    figures = run(
        tmp_path,
        seed=1,
        count=len(FAULTS),
        faults=[named(name) for name in FAULTS],
        topology=Topology(),
        back_within_s=180.0,  # the machine of a test run is shared; `make chaos` holds the workers to a minute
    )
    assert figures["records"] > 0
    assert len(figures["faults"]) == len(FAULTS)
