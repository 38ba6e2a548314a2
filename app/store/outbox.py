"""The outbox: what a transaction wants told to Kafka, the audit engine or the webhook, kept until it has been told.

A change of state, its audit entry and the record it sends are written in one transaction; `app.relay` delivers them
in the order of `seq`. A crash between delivery and `mark_delivered` repeats a delivery: audit entries carry an
`entry_id`, and Kafka records are announcements that readers check against SQL, so a repetition changes nothing.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import utc_now
from app.store.tables import outbox

AUDIT = "audit"
KAFKA = "kafka"
WEBHOOK = "webhook"
MAX_REFUSAL = 1000

_ITEM = (outbox.c.seq, outbox.c.channel, outbox.c.destination, outbox.c.key, outbox.c.payload)


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """One undelivered message. `destination` is a topic, or the audit entry's or the notice's type."""

    seq: int
    channel: str
    destination: str
    key: str | None
    payload: dict[str, Any]


def audit(connection: Connection, event_type: str, body: dict[str, Any]) -> str:
    """Queue an audit entry; returns its `entry_id`, which makes delivery idempotent."""
    entry_id = str(body.get("entry_id") or uuid.uuid4().hex)
    payload = {"timestamp": utc_now(), **body, "event_type": event_type, "entry_id": entry_id}
    _add(connection, AUDIT, event_type, None, payload)
    return entry_id


def publish(connection: Connection, topic: str, key: str, record: dict[str, Any]) -> None:
    """Queue a Kafka record."""
    _add(connection, KAFKA, topic, key, record)


def notify(connection: Connection, kind: str, payload: dict[str, Any]) -> None:
    """Queue a notice for the webhook; `app.store.notices` says which there are."""
    _add(connection, WEBHOOK, kind, None, payload)


def pending_notices(connection: Connection, limit: int = 100) -> list[tuple[OutboxItem, str]]:
    """The oldest undelivered notices, in order, each with when it was written (RFC 3339, UTC)."""
    rows = connection.execute(
        sa.select(*_ITEM, outbox.c.created_at)
        .where(outbox.c.delivered_at.is_(None), outbox.c.channel == WEBHOOK)
        .order_by(outbox.c.seq)
        .limit(limit),
    )
    return [(OutboxItem(*row[:5]), row.created_at) for row in rows]


def pending(connection: Connection, limit: int = 100) -> list[OutboxItem]:
    """The oldest undelivered audit entries and records, in order. Notices never hold these back."""
    rows = connection.execute(
        sa.select(*_ITEM)
        .where(outbox.c.delivered_at.is_(None), outbox.c.channel != WEBHOOK)
        .order_by(outbox.c.seq)
        .limit(limit),
    )
    return [OutboxItem(*row) for row in rows]


def mark_delivered(connection: Connection, seqs: list[int]) -> None:
    """Record that these have reached where they were going."""
    connection.execute(sa.update(outbox).where(outbox.c.seq.in_(seqs)).values(delivered_at=utc_now()))


def mark_refused(connection: Connection, seq: int, reason: str) -> None:
    """Record that the receiver will never take this one: it is dealt with, and was not told."""
    values = {"delivered_at": utc_now(), "refusal": reason[:MAX_REFUSAL]}
    connection.execute(sa.update(outbox).where(outbox.c.seq == seq).values(**values))


def refused(connection: Connection, limit: int = 100) -> list[tuple[OutboxItem, str]]:
    """The messages that were refused for good, the latest first, each with the reason."""
    rows = connection.execute(
        sa.select(*_ITEM, outbox.c.refusal)
        .where(outbox.c.refusal.is_not(None))
        .order_by(outbox.c.seq.desc())
        .limit(limit),
    )
    return [(OutboxItem(*row[:5]), row.refusal) for row in rows]


def _add(connection: Connection, channel: str, destination: str, key: str | None, payload: dict[str, Any]) -> None:
    connection.execute(
        sa.insert(outbox).values(
            channel=channel,
            destination=destination,
            key=key,
            payload=payload,
            created_at=utc_now(),
        ),
    )
