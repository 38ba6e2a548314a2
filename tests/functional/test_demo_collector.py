"""The demo's way through the collector: used where there is one, and its masks are counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from collector_parts import collector_program
from systems import running, wait_until

from app.demo.collector import masks_of_collector, start_collector
from app.emitter import LogEmitter


def test_without_a_program_the_demo_goes_to_the_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLYWHEEL_OTELCOL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with running(tmp_path, "mock", None, {}) as system:
        assert start_collector(system) is None


def test_masks_of_the_collector_are_counted_and_those_that_were_sent_are_not(tmp_path: Path) -> None:
    collector_program()
    events = [{"prompt": f"write to person{n}@example.org, or to [EMAIL]"} for n in range(5)]
    events.append({"prompt": "from 10.0.0.1"})
    with running(tmp_path, "mock", None, {}) as system:
        collector = start_collector(system)
        assert collector is not None
        with LogEmitter(collector.endpoint("logs"), "demo") as emitter:
            emitter.emit(events)
        bootstrap = system.stack.broker.bootstrap
        counted = lambda: dict(asyncio.run(masks_of_collector(bootstrap, events)))  # noqa: E731 - read again at each look
        wait_until(lambda: counted().get("EMAIL"), "the events are on Kafka", 30.0)
        assert counted() == {"EMAIL": 5, "IPV4": 1}
