"""The monitoring worker while faults fall: it polls on, and counts each finished cycle once."""

from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from systems import wait_until

from agents.monitoring.poll import Position
from app.embedded.process import ManagedProcess
from app.embedded.system import System
from app.roles import Role
from app.store import Database, cursors

SETTINGS: dict[str, dict[str, Any]] = {"monitoring": {"interval_s": 1.0, "retry_interval_s": 2.0}}
_SOURCE = "optimizations"
_OTHERS = ("evaluations", "violations", "privacy", "groups")


class Monitored:
    """The monitoring worker of a system.

    Args:
        system: with the worker started.
        database: where the worker keeps its positions.
    """

    def __init__(self, system: System, database: Database) -> None:
        self._system = system
        self._database = database
        self._since: str | None = None
        """The position that the process which runs now began at."""

    @property
    def process(self) -> ManagedProcess:
        """The worker."""
        return self._system.processes["worker-monitor"]

    def restart(self) -> None:
        """Start it again after its end."""
        with self._database.read() as connection:
            self._since = Position.parse(cursors.load(connection, _SOURCE)).cursor
        self.process.start()

    def wait_progress(self, within_s: float) -> None:
        """Wait until every source was polled again, with success."""
        sources = (_SOURCE, *_OTHERS)
        before = {source: self._polled(source) for source in sources}

        def polled() -> bool:
            # A worker that began anew counts from zero.
            now = {source: self._polled(source) for source in sources}
            return all(now[source] > 0 and now[source] != before[source] for source in sources)

        wait_until(polled, "the monitoring worker polls all sources", within_s)

    def check(self, within_s: float) -> int:
        """What finished since the process began was counted, each once; how many that are."""
        url = f"{self._system.settings.audit_engine.url}/api/v1/optimizations/recent"
        asked = {"after": self._since or "0", "limit": "500"}
        ended = httpx.get(url, params=asked, timeout=30.0, trust_env=False).raise_for_status().json()
        counted = lambda: self._total("model_optimization_cycles_total")  # noqa: E731 - read again at each look
        wait_until(lambda: counted() >= len(ended), f"the monitoring worker counts {len(ended)} cycles", within_s)
        self.wait_progress(within_s)
        assert counted() == len(ended), f"{len(ended)} cycles ended, {counted():.0f} were counted"
        return len(ended)

    def _polled(self, source: str) -> float:
        return self._total("flywheel_monitoring_polls_total", source=source, outcome="ok")

    def _total(self, name: str, **labels: str) -> float:
        try:
            page = httpx.get(f"{self._system.url(Role.MONITOR)}/metrics", timeout=30.0, trust_env=False)
        except httpx.HTTPError:
            return 0.0
        families = text_string_to_metric_families(page.text) if page.is_success else ()
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
