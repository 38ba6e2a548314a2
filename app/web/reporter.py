"""Tells the store, every other second, what this worker is doing, so that any worker's pages show all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from app.store import reports
from app.store.database import DatabaseUnavailable

if TYPE_CHECKING:
    from app.workers import WorkerState

logger = logging.getLogger(__name__)

EVERY_S = 2.0
RATE_OVER_S = 10.0
STORE_WITHIN_S = 5.0
COUNTED = ("in", "routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
"""The router's counters whose rates are shown."""


class Rates:
    """Counts a second, over the last `RATE_OVER_S` seconds of what `observe` was told."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, dict[str, float]]] = deque()

    def observe(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Take note of the counters as they are now; returns the rates."""
        now = self._clock()
        if not self._seen or now - self._seen[-1][0] >= EVERY_S / 2:
            self._seen.append((now, dict(counts)))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_OVER_S:
            self._seen.popleft()
        then, before = self._seen[0]
        passed = now - then
        if passed <= 0:
            return dict.fromkeys(counts, 0.0)
        return {name: max(0.0, (count - before.get(name, 0.0)) / passed) for name, count in counts.items()}


class Reporter:
    """One worker's reports. `report` may be called from any thread."""

    def __init__(self, state: WorkerState, worker: str) -> None:
        self._state = state
        self.worker = worker
        self._rates = Rates()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._away = False

    def report(self) -> dict[str, Any]:
        """What the worker is doing now: counters and rates of routing, lag by topic, what is known of its health."""
        snapshots = self._state.snapshots
        routing = dict(snapshots["routing"]()) if "routing" in snapshots else None
        told: dict[str, Any] = {"role": self._state.role.value}
        if routing is not None:
            counts = {name: routing[name] for name in COUNTED}
            with self._lock:
                rates = self._rates.observe(counts)
            told["routing"] = counts | {
                "by_classification": routing["by_classification"]["routed"],
                "by_reason": routing["by_reason"],
                "rates": {name: round(rate, 2) for name, rate in rates.items()},
                "settings_revision": routing.get("live", {}).get("revision", 0),
            }
        if "consumer" in snapshots:
            flow = snapshots["consumer"]()
            told["lag"] = {topic: sum(behind.values()) for topic, behind in flow["lag"].items()}
        return told

    def start(self) -> None:
        """Report from a thread of its own: the store may be slow, and the worker's loop does not wait for it."""
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and take this worker's report back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STORE_WITHIN_S)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._tell(lambda connection: reports.save(connection, self.worker, self._state.role.value, self.report()))
        self._tell(lambda connection: reports.remove(connection, self.worker))

    def _tell(self, change: Callable[[sa.engine.Connection], None]) -> None:
        try:
            with self._state.open_database(STORE_WITHIN_S).write() as connection:
                change(connection)
        except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
            if not self._away:
                logger.warning("the pages do not learn of this worker while SQL is away: %s", type(error).__name__)
            self._away = True
        except Exception:
            logger.exception("this worker's report could not be written")
        else:
            self._away = False
