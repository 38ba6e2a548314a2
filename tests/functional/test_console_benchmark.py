"""The pages' benchmark works: it fills a store of the asked size, asks for every page, and measures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.console import measure


def test_a_small_store_is_measured(tmp_path: Path) -> None:
    found = measure(tmp_path, events=500, n_examples=40, n_cycles=24, rounds=2)
    assert {"/", "/review", "/models", "/routing", "/audit", "/dead-letters", "/?span=7d"} < set(found["pages"])
    assert all(figure["cpu_ms"] > 0 < figure["median_ms"] for figure in found["pages"].values())
    # What was asked for is there: the page shows cycles, and the counters their events.
    assert found["pages"]["/"]["bytes"] > 20_000
