"""Tells the audit log what is about to be done with dead letters, before it is done."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import sqlalchemy as sa

from agents.routing.backoff import Backoff
from app import wiring
from app.relay import Undeliverable
from app.settings import Settings
from app.store import Database, outbox
from app.store import tables as schema
from app.store.database import utc_now
from policies.clients.audit_client import AuditUnavailable

DELIVERED_WITHIN_S = 30.0


class NotInAuditLog(RuntimeError):
    """The audit engine does not have the entry, so nothing was done."""


async def announce(
    settings: Settings,
    database: Database,
    event_type: str,
    body: dict[str, Any],
    within_s: float = DELIVERED_WITHIN_S,
) -> str:
    """Put an entry into the outbox and into the audit log; returns its `entry_id` once both have it.

    The outbox's relay delivers the same entry again, which changes nothing. One that the engine does not take is
    withdrawn from the outbox: it would tell of what has not happened. The marks name the entry, so an entry whose
    command was killed before its first mark can be told from one that took effect.

    Raises:
        NotInAuditLog: the engine refuses it, or did not answer within `within_s`.
    """
    entry = {**body, "entry_id": f"dlq-{uuid.uuid4().hex}", "timestamp": utc_now(), "event_type": event_type}
    await asyncio.to_thread(_queue, database, event_type, entry)
    client = wiring.audit_client(settings)
    try:
        async with asyncio.timeout(within_s):
            await _deliver(wiring.AuditOutlet(client, settings.constitution.hash), entry)
    except BaseException as error:
        await asyncio.to_thread(_withdraw, database, entry["entry_id"])
        if not isinstance(error, TimeoutError | Undeliverable):
            raise
        reason = str(error) or f"it did not answer within {within_s:.0f} s"
        engine = settings.audit_engine.url
        raise NotInAuditLog(
            f"the audit engine at {engine} has no entry of this, so nothing was done: {reason}"
        ) from None
    finally:
        await client.aclose()
    return str(entry["entry_id"])


async def _deliver(outlet: wiring.AuditOutlet, entry: dict[str, Any]) -> None:
    backoff = Backoff(cap_s=2.0)
    while True:
        try:
            await outlet.log_body(entry)
        except AuditUnavailable:
            await backoff.wait()
        else:
            return


def _queue(database: Database, event_type: str, entry: dict[str, Any]) -> None:
    with database.write() as connection:
        outbox.audit(connection, event_type, entry)


def _withdraw(database: Database, entry_id: str) -> None:
    with database.write() as connection:
        waiting = sa.select(schema.outbox.c.seq, schema.outbox.c.payload).where(
            schema.outbox.c.channel == outbox.AUDIT, schema.outbox.c.delivered_at.is_(None)
        )
        seqs = [seq for seq, payload in connection.execute(waiting) if payload.get("entry_id") == entry_id]
        connection.execute(sa.delete(schema.outbox).where(schema.outbox.c.seq.in_(seqs)))
