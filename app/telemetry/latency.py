"""How long the clients of Redis, Kafka and the store take: one histogram for each client and operation."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import sqlalchemy as sa
from aiokafka import AIOKafkaProducer

from agents.histogram import Histogram

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MAX_OPERATIONS = 32
"""Operations of one client that are told apart."""

REDIS, KAFKA, SQL = "redis", "kafka", "sql"
_VERBS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN"})


class ClientLatency:
    """Observations of one worker's clients, from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: dict[tuple[str, str], Histogram] = {}

    def observe(self, client: str, operation: str, seconds: float) -> None:
        """One call was answered, or failed, after so long."""
        with self._lock:
            found = self._found.get((client, operation))
            if found is None:
                if sum(name == client for name, _ in self._found) >= MAX_OPERATIONS:
                    operation = "other"
                found = self._found.setdefault((client, operation), Histogram(BOUNDS_S))
            found.observe(seconds)

    def snapshot(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Snapshots by (client, operation)."""
        with self._lock:
            return {place: found.snapshot() for place, found in self._found.items()}

    def watch_redis(self, client: Any) -> None:
        """Observe a Redis client's commands (of a pipeline: none, they are told of by whoever runs it)."""
        inner = client.execute_command

        async def execute_command(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return await inner(*args, **options)
            finally:
                self.observe(REDIS, str(args[0]).partition(" ")[0].lower(), time.perf_counter() - began)

        client.execute_command = execute_command

    def watch_producer(self, producer: AIOKafkaProducer) -> None:
        """Observe a producer: from handing a batch or record over until the broker has it."""
        for name in ("send_batch", "send"):
            setattr(producer, name, self._watched(getattr(producer, name), name))

    def watch_database(self, engine: sa.Engine) -> None:
        """Observe a store's statements."""

        def before(_connection: Any, _cursor: Any, _statement: str, _values: Any, context: Any, _many: bool) -> None:
            if context is not None:
                context.flywheel_began = time.perf_counter()

        def after(_connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool) -> None:
            began = getattr(context, "flywheel_began", None)
            if began is not None:
                verb = statement.lstrip()[:6].rstrip().upper()
                self.observe(SQL, verb.lower() if verb in _VERBS else "other", time.perf_counter() - began)

        sa.event.listen(engine, "before_cursor_execute", before)
        sa.event.listen(engine, "after_cursor_execute", after)

    def _watched(self, send: Callable[..., Any], operation: str) -> Callable[..., Any]:
        async def watched(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            acknowledged = await send(*args, **options)
            acknowledged.add_done_callback(
                lambda _: self.observe(KAFKA, operation, time.perf_counter() - began),
            )
            return acknowledged

        return watched
