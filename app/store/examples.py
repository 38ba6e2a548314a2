"""Training examples and the feedback that waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, utc_now
from app.store.tables import examples, pending_feedback
from models.event import Classification, Identity
from models.example import Example, ExampleStatus, Lineage


def insert(connection: Connection, new: list[Example]) -> int:
    """Insert examples that are not there yet (by `example_id`); returns how many were new."""
    return insert_new(connection, examples, [_row(example) for example in new], ["example_id"])


def get(connection: Connection, example_ids: list[str], *, to_change: bool = False) -> dict[str, Example]:
    """Examples by id; ids that are not there are missing from the answer.

    `to_change` holds their rows to the end of the transaction.
    """
    found: dict[str, Example] = {}
    for start in range(0, len(example_ids), 500):
        chunk = example_ids[start : start + 500]
        query = sa.select(examples).where(examples.c.example_id.in_(chunk))
        rows = connection.execute(query.with_for_update() if to_change else query)
        found.update({row.example_id: _example(row) for row in rows})
    return found


@dataclass(frozen=True, slots=True)
class WaitingUnits:
    """What waits for a cycle of a model and domain. A subject's examples are one unit; `oldest`: RFC 3339, UTC."""

    model_id: str
    domain: str
    examples: int
    units: int
    oldest: str


def waiting_models(connection: Connection) -> Iterator[str]:
    """The models that examples wait for, in order. A look into an index for each, however many examples there are."""
    query = first = sa.select(sa.func.min(examples.c.model_id)).where(examples.c.status == ExampleStatus.NEW)
    while (found := connection.execute(query).scalar_one()) is not None:
        yield found
        query = first.where(examples.c.model_id > found)


def waiting_units(connection: Connection, model_id: str | None = None) -> list[WaitingUnits]:
    """What waits for a cycle, by model and domain; of one model where one is named. Takes time for each example."""
    unit = sa.func.coalesce(examples.c.subject_token, examples.c.example_id)
    waits = examples.c.status == ExampleStatus.NEW
    rows = connection.execute(
        sa.select(
            examples.c.model_id,
            examples.c.domain,
            sa.func.count(),
            sa.func.count(sa.distinct(unit)),
            sa.func.min(examples.c.created_at),
        )
        .where(waits if model_id is None else waits & (examples.c.model_id == model_id))
        .group_by(examples.c.model_id, examples.c.domain)
        .order_by(examples.c.model_id, examples.c.domain),
    )
    return [WaitingUnits(row[0], row[1], int(row[2]), int(row[3]), row[4]) for row in rows]


def count_new(connection: Connection) -> list[tuple[str, str, int]]:
    """(model, domain, how many examples wait for a cycle)."""
    return [(group.model_id, group.domain, group.examples) for group in waiting_units(connection)]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which examples to list; None stands for any."""

    model_id: str | None = None
    domain: str | None = None
    status: ExampleStatus | None = None
    subject_token: str | None = None
    cycle_id: str | None = None


def search(connection: Connection, wanted: Filter, limit: int | None = None) -> list[Example]:
    """Examples, newest first."""
    query = sa.select(examples).order_by(examples.c.created_at.desc(), examples.c.example_id)
    for name in ("model_id", "domain", "status", "subject_token", "cycle_id"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(examples.c[name] == value)
    return [_example(row) for row in connection.execute(query.limit(limit))]


def trained_prompts(connection: Connection, domain: str) -> list[str]:
    """Prompts of a domain's examples that were trained on and still hold text."""
    rows = connection.execute(
        sa.select(examples.c.prompt).where(
            examples.c.domain == domain, examples.c.status == ExampleStatus.USED, examples.c.prompt != ""
        ),
    )
    return [row.prompt for row in rows]


def trace_links(connection: Connection, example_ids: list[str], limit: int) -> list[str]:
    """The links of followed examples among these (see `Lineage`), `limit` at most."""
    found: list[str] = []
    for start in range(0, len(example_ids), 500):
        query = sa.select(examples.c.trace_links).where(
            examples.c.example_id.in_(example_ids[start : start + 500]), examples.c.trace_links.is_not(None)
        )
        found += connection.execute(query.order_by(examples.c.example_id).limit(limit - len(found))).scalars()
        if len(found) >= limit:
            break
    return found


def waiting(connection: Connection, model_id: str, domain: str) -> list[Example]:
    """All examples that wait for a cycle, most urgent first, then oldest.

    There is no limit: taking the first so many would make one record's use depend on the others.
    """
    rows = connection.execute(
        sa.select(examples)
        .where(
            examples.c.model_id == model_id,
            examples.c.domain == domain,
            examples.c.status == ExampleStatus.NEW,
        )
        .order_by(examples.c.priority.desc(), examples.c.created_at, examples.c.example_id),
    )
    return [_example(row) for row in rows]


def mark(connection: Connection, example_ids: list[str], status: ExampleStatus, cycle_id: str) -> None:
    """These new examples have been taken by that cycle: trained on, or held out for its evaluation."""
    for start in range(0, len(example_ids), 500):
        connection.execute(
            sa.update(examples)
            .where(
                examples.c.example_id.in_(example_ids[start : start + 500]),
                examples.c.status == ExampleStatus.NEW,
            )
            .values(status=status, cycle_id=cycle_id),
        )


def add_feedback(connection: Connection, rows: list[dict[str, Any]]) -> int:
    """Keep feedback (columns of `pending_feedback`) until its event is there; returns how many rows were new."""
    stamped = [_storable({"created_at": utc_now(), "applied_at": None, **row}) for row in rows]
    return insert_new(connection, pending_feedback, stamped, ["feedback_id"])


def unapplied_feedback(connection: Connection, limit: int = 1000) -> list[tuple[sa.Row[Any], str]]:
    """Feedback whose target is known by now, with the target's `example_id`.

    An `event_id` that several examples share is ambiguous and matches none of them.
    """
    other = examples.alias("other")
    shared = sa.exists().where(other.c.event_id == examples.c.event_id, other.c.example_id != examples.c.example_id)
    rows = connection.execute(
        sa.select(pending_feedback, examples.c.example_id)
        .join(examples, examples.c.event_id == pending_feedback.c.target_event_id)
        .where(pending_feedback.c.applied_at.is_(None), ~shared)
        .order_by(pending_feedback.c.created_at, pending_feedback.c.feedback_id)
        .limit(limit),
    )
    return [(row, row.example_id) for row in rows]


def apply_feedback(connection: Connection, feedback_id: str, example_id: str, changes: dict[str, Any]) -> None:
    """Change an example as its reviewer said, once."""
    done = connection.execute(
        sa.update(pending_feedback)
        .where(pending_feedback.c.feedback_id == feedback_id, pending_feedback.c.applied_at.is_(None))
        .values(applied_at=utc_now()),
    )
    if done.rowcount and changes:
        connection.execute(sa.update(examples).where(examples.c.example_id == example_id).values(**changes))


def _row(example: Example) -> dict[str, Any]:
    row = {
        "example_id": example.example_id,
        "service": example.identity.service,
        "identity": example.identity.id,
        "fingerprint": example.identity.fingerprint,
        "event_id": example.event_id,
        "classification": example.classification.value,
        "topic": example.lineage.topic,
        "partition": example.lineage.partition,
        "offset": example.lineage.offset,
        "trace_id": example.lineage.trace_id,
        "trace_links": example.lineage.trace_links,
        "cycle_id": None,
        **example.model_dump(
            mode="json",
            exclude={"example_id", "identity", "event_id", "classification", "lineage"},
        ),
    }
    return _storable(row)


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """The row without NUL characters, which PostgreSQL's text cannot hold; producers may send them."""
    return {name: value.replace("\0", "\ufffd") if isinstance(value, str) else value for name, value in row.items()}


def _example(row: sa.Row[Any]) -> Example:
    return Example(
        example_id=row.example_id,
        identity=Identity(service=row.service, id=row.identity, fingerprint=row.fingerprint),
        event_id=row.event_id,
        classification=Classification(row.classification),
        lineage=Lineage(
            topic=row.topic,
            partition=row.partition,
            offset=row.offset,
            trace_id=row.trace_id,
            trace_links=row.trace_links,
        ),
        domain=row.domain,
        model_id=row.model_id,
        subject_token=row.subject_token,
        workload_id=row.workload_id,
        violation_type=row.violation_type,
        compliance_score=row.compliance_score,
        prompt=row.prompt,
        response=row.response,
        corrected_response=row.corrected_response,
        correction_signed=row.correction_signed,
        priority=row.priority,
        status=ExampleStatus(row.status),
        created_at=row.created_at,
    )
