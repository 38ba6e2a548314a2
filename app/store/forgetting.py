"""Tombstones: an example's text goes, the fact that there was one stays.

What is forgotten: prompt, answer, corrections and revised answers, wherever SQL holds them. What stays: ids, digests,
counts and lineage, by which an auditor can say that it was forgotten, and a redelivery finds that it was there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import outbox
from app.store.tables import (
    cycles,
    examples,
    ledger,
    manifests,
    model_versions,
    pending_feedback,
    revisions,
    teacher_usage,
)
from models.cycle import TERMINAL_STATES
from models.example import ExampleStatus

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was forgotten, and who had used it before.

    `open_cycles` go on without these examples; `trained_cycles` spent privacy budget on them, which forgetting does
    not refund; `versions` are the adapters that came of it. `sent_out` are the cycles that may have sent the text to a
    teacher, which cannot be taken back from here.
    """

    examples: int
    feedback: int
    revisions: int
    open_cycles: tuple[str, ...]
    trained_cycles: tuple[str, ...]
    versions: tuple[str, ...]
    sent_out: tuple[str, ...]


def of_subject(connection: Connection, subject_token: str) -> list[str]:
    """The ids of a subject's examples that still hold text."""
    rows = connection.execute(
        sa.select(examples.c.example_id)
        .where(examples.c.subject_token == subject_token, examples.c.status != ExampleStatus.FORGOTTEN)
        .order_by(examples.c.example_id),
    )
    return [row.example_id for row in rows]


def older_than(connection: Connection, stamp: str, limit: int = 1000) -> list[str]:
    """The ids of examples created before `stamp` (RFC 3339, UTC) that hold text and that no open cycle works on."""
    at_work = (
        sa.select(revisions.c.example_id)
        .join(cycles, cycles.c.cycle_id == revisions.c.cycle_id)
        .where(cycles.c.state.not_in([state.value for state in TERMINAL_STATES]))
    )
    rows = connection.execute(
        sa.select(examples.c.example_id)
        .where(
            examples.c.created_at < stamp,
            examples.c.status != ExampleStatus.FORGOTTEN,
            examples.c.example_id.not_in(at_work),
        )
        .order_by(examples.c.created_at)
        .limit(limit),
    )
    return [row.example_id for row in rows]


def forget(connection: Connection, example_ids: Sequence[str], *, requested_by: str, reason: str) -> Forgotten:
    """Take the text of these examples away, with one audit entry; idempotent."""
    # Before the text goes: which cycles used it is read from what they revised.
    open_cycles = tuple(_cycles_of(connection, example_ids, trained=False))
    trained_cycles = tuple(_cycles_of(connection, example_ids, trained=True))
    versions = tuple(_versions_of(connection, trained_cycles))
    sent_out = tuple(_sent_out(connection, set(example_ids)))
    counts = Counter[str]()
    for start in range(0, len(example_ids), _CHUNK):
        counts.update(_blank(connection, list(example_ids[start : start + _CHUNK])))
    if counts["examples"]:
        context = {
            "reason": reason,
            "requested_by": requested_by,
            "examples": counts["examples"],
            "open_cycles": list(open_cycles),
            "trained_cycles": list(trained_cycles),
            "sent_out": list(sent_out),
        }
        outbox.audit(connection, "examples_forgotten", {"context": context})
    return Forgotten(
        counts["examples"],
        counts["feedback"],
        counts["revisions"],
        open_cycles,
        trained_cycles,
        versions,
        sent_out,
    )


def _blank(connection: Connection, chunk: list[str]) -> dict[str, int]:
    events = sa.select(examples.c.event_id).where(examples.c.example_id.in_(chunk), examples.c.event_id.is_not(None))
    feedback = connection.execute(
        sa.update(pending_feedback)
        .where(pending_feedback.c.target_event_id.in_(events), pending_feedback.c.corrected_response.is_not(None))
        .values(corrected_response=None),
    )
    revised = connection.execute(
        sa.update(revisions).where(revisions.c.example_id.in_(chunk), revisions.c.target != "").values(target=""),
    )
    blanked = connection.execute(
        sa.update(examples)
        .where(examples.c.example_id.in_(chunk), examples.c.status != ExampleStatus.FORGOTTEN)
        .values(prompt="", response="", corrected_response=None, status=ExampleStatus.FORGOTTEN),
    )
    return {"examples": blanked.rowcount, "feedback": feedback.rowcount, "revisions": revised.rowcount}


def _cycles_of(connection: Connection, example_ids: Sequence[str], *, trained: bool) -> list[str]:
    spent = sa.select(ledger.c.cycle_id)
    found: set[str] = set()
    for start in range(0, len(example_ids), _CHUNK):
        chunk = list(example_ids[start : start + _CHUNK])
        query = sa.select(revisions.c.cycle_id).where(revisions.c.example_id.in_(chunk)).distinct()
        if trained:
            query = query.where(revisions.c.compliant, revisions.c.cycle_id.in_(spent))
        else:
            query = query.join(cycles, cycles.c.cycle_id == revisions.c.cycle_id).where(
                cycles.c.state.not_in([state.value for state in TERMINAL_STATES])
            )
        found.update(row.cycle_id for row in connection.execute(query))
    return sorted(found)


def _versions_of(connection: Connection, trained_cycles: Sequence[str]) -> list[str]:
    rows = connection.execute(
        sa.select(model_versions.c.version_id).where(model_versions.c.cycle_id.in_(trained_cycles))
    )
    return sorted(row.version_id for row in rows)


def _sent_out(connection: Connection, example_ids: set[str]) -> list[str]:
    asked = sa.select(teacher_usage.c.cycle_id).where(teacher_usage.c.requests > 0)
    rows = connection.execute(sa.select(manifests).where(manifests.c.cycle_id.in_(asked)))
    return sorted(
        row.cycle_id
        for row in rows
        if not example_ids.isdisjoint(member["example_id"] for member in row.document["members"])
    )
