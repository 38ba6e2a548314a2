"""Delivers the outbox: audit entries to the audit engine, records to Kafka, strictly in order.

One relay works at a time, by lease. Whatever cannot be delivered now holds the rest back and is tried again: the
order is what lets a reader trust that a cycle's record has its audit entry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Protocol

import orjson
import sqlalchemy as sa

from app.store import Database, leases, outbox
from app.store.outbox import AUDIT, OutboxItem

logger = logging.getLogger(__name__)
LEASE = "outbox-relay"
# A batch is given up half-way through the lease, and so is each delivery: none may end when another relay works.
LEASE_S = 20.0
IDLE_S = 0.3
RETRY_S = 2.0
BATCH = 100


class AuditSink(Protocol):
    """Takes one audit entry, or raises."""

    async def log_body(self, body: dict[str, Any]) -> Any: ...


class RecordSink(Protocol):
    """Takes one Kafka record and returns once the broker has it, or raises."""

    async def send_and_wait(self, topic: str, value: bytes, key: bytes | None) -> Any: ...


class Undeliverable(RuntimeError):
    """The receiver refuses this message for good. It is logged, kept with the reason, and passed over."""


class OutboxRelay:
    """Drains the outbox until cancelled."""

    def __init__(self, database: Database, audit: AuditSink, records: RecordSink, holder: str) -> None:
        self.database = database
        self.audit = audit
        self.records = records
        self.holder = holder

    async def run(self) -> None:
        """Deliver for as long as the worker lives."""
        while True:
            delivered = 0
            try:
                delivered = await self.deliver_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, the message stays and is tried again
                logger.warning("outbox waits: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_S)
            if not delivered:
                await asyncio.sleep(IDLE_S)

    async def deliver_once(self) -> int:
        """Deliver one batch in order; returns how many went. Marks those before raising what stopped it."""
        until = time.monotonic() + LEASE_S / 2
        items = await asyncio.to_thread(self._take)
        done: list[int] = []
        refused: dict[int, str] = {}
        try:
            for item in items:
                if time.monotonic() > until:
                    break
                try:
                    async with asyncio.timeout(LEASE_S / 2):
                        await self._deliver(item)
                except Undeliverable as refusal:
                    logger.error("outbox message %s refused: %s", item.seq, refusal)
                    refused[item.seq] = str(refusal)
                else:
                    done.append(item.seq)
        finally:
            if done or refused:
                await asyncio.to_thread(self._mark, done, refused)
        return len(done) + len(refused)

    async def _deliver(self, item: OutboxItem) -> None:
        if item.channel == AUDIT:
            await self.audit.log_body(item.payload)
        else:
            key = item.key.encode() if item.key else None
            await self.records.send_and_wait(item.destination, orjson.dumps(item.payload), key)

    def _take(self) -> list[OutboxItem]:
        with self.database.write() as connection:
            if leases.acquire(connection, LEASE, self.holder, LEASE_S) is None:
                return []
            return outbox.pending(connection, BATCH)

    def _mark(self, delivered: list[int], refused: dict[int, str]) -> None:
        with self.database.write() as connection:
            outbox.mark_delivered(connection, delivered)
            for seq, reason in refused.items():
                outbox.mark_refused(connection, seq, reason)

    async def close(self) -> None:
        """Give the lease back, so that another relay need not wait for it to run out."""

        def release() -> None:
            with self.database.write() as connection:
                lease = leases.acquire(connection, LEASE, self.holder, LEASE_S)
                if lease is not None:
                    leases.release(connection, lease)

        try:
            await asyncio.to_thread(release)
        except sa.exc.OperationalError as error:
            logger.warning("relay lease not released: %s", type(error).__name__)
