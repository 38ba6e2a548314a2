"""What waits for a reviewer: examples that nobody has spoken on and that no cycle has taken."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.tables import examples, pending_feedback
from models.example import ExampleStatus


def _waiting(domains: Collection[str] | None) -> sa.Select[tuple[str]]:
    other = examples.alias("other")
    # Feedback names its target by `event_id`; one that several examples share would reach none of them.
    shared = sa.exists().where(other.c.event_id == examples.c.event_id, other.c.example_id != examples.c.example_id)
    spoken = sa.exists().where(pending_feedback.c.target_event_id == examples.c.event_id)
    query = sa.select(examples.c.example_id).where(
        examples.c.status == ExampleStatus.NEW, examples.c.event_id.is_not(None), ~shared, ~spoken
    )
    return query if domains is None else query.where(examples.c.domain.in_(sorted(domains)))


def waiting(
    connection: Connection, domains: Collection[str] | None, limit: int, without: Collection[str] = ()
) -> list[str]:
    """Ids of the most urgent examples that wait for a reviewer, those whose event is in `without` left out."""
    query = _waiting(domains).order_by(examples.c.priority.desc(), examples.c.created_at)
    if without:
        query = query.where(examples.c.event_id.not_in(sorted(without)))
    return [row.example_id for row in connection.execute(query.limit(limit))]


def domain_of_event(connection: Connection, event_id: str) -> str | None:
    """The domain of the one example of an event; None where there is none, or where several share the event's id."""
    found = connection.execute(sa.select(examples.c.domain).where(examples.c.event_id == event_id).limit(2)).all()
    return found[0].domain if len(found) == 1 else None
