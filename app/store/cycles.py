"""Cycles: opened once a model, changed only by compare-and-set, each change told to the audit engine and to Kafka."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import notices, outbox
from app.store.database import insert_new, plain, utc_now
from app.store.tables import cycle_events, cycles, manifests
from app.topics import CYCLES
from models.cycle import TERMINAL_STATES, TRANSITIONS, Cycle, CycleRecord, CycleState, Manifest, TriggerType


class IllegalTransition(RuntimeError):
    """No cycle goes from that state to this one; a bug or a forged request, never a race."""


class StaleCycle(RuntimeError):
    """Another worker changed the cycle first. Read it again and decide anew."""


def new_cycle_id() -> str:
    """A readable id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def open_cycle(
    connection: Connection,
    *,
    model_id: str,
    domain: str,
    trigger_type: TriggerType,
    requested_by: str,
    facts: dict[str, Any],
) -> Cycle | None:
    """Open a cycle for a model; None when one is open already, or another worker opens one at this moment."""
    if has_open(connection, model_id):
        return None
    now = utc_now()
    cycle = Cycle(
        cycle_id=new_cycle_id(),
        model_id=model_id,
        domain=domain,
        state=CycleState.PROPOSED,
        trigger_type=trigger_type,
        requested_by=requested_by,
        version=1,
        facts=facts,
        created_at=now,
        updated_at=now,
    )
    row = cycle.model_dump(mode="json") | {"reasons": []}
    try:
        # A savepoint: the index refuses a rival that we could not see yet, and the caller's transaction goes on.
        with connection.begin_nested():
            connection.execute(sa.insert(cycles).values(**row))
    except sa.exc.IntegrityError:
        return None
    _tell(connection, cycle, {"trigger": facts})
    return cycle


def has_open(connection: Connection, model_id: str) -> bool:
    """Whether a cycle of the model is open."""
    query = sa.select(cycles.c.cycle_id).where(
        cycles.c.model_id == model_id, cycles.c.state.not_in([state.value for state in TERMINAL_STATES])
    )
    return connection.execute(query).first() is not None


def get(connection: Connection, cycle_id: str) -> Cycle | None:
    """One cycle, or None."""
    row = connection.execute(sa.select(cycles).where(cycles.c.cycle_id == cycle_id)).one_or_none()
    return None if row is None else _cycle(row)


def list_cycles(connection: Connection, *, open_only: bool = False, limit: int = 100) -> list[Cycle]:
    """Cycles, oldest first when only open ones are asked for, else newest first."""
    query = sa.select(cycles)
    if open_only:
        query = query.where(cycles.c.state.not_in([state.value for state in TERMINAL_STATES]))
        query = query.order_by(cycles.c.created_at)
    else:
        query = query.order_by(cycles.c.created_at.desc())
    return [_cycle(row) for row in connection.execute(query.limit(limit))]


def matching(connection: Connection, query: sa.Select[Any]) -> list[Cycle]:
    """The cycles that a query over the table's columns finds, in its order."""
    return [_cycle(row) for row in connection.execute(query)]


def last_finished(connection: Connection, model_id: str) -> str | None:
    """When the model's latest finished cycle ended (RFC 3339), for the cool-down."""
    latest: str | None = connection.execute(
        sa.select(sa.func.max(cycles.c.updated_at)).where(
            cycles.c.model_id == model_id,
            cycles.c.state.in_([state.value for state in TERMINAL_STATES]),
        ),
    ).scalar_one()
    return latest


def transition(
    connection: Connection,
    cycle: Cycle,
    state: CycleState,
    detail: dict[str, Any] | None = None,
    **changes: Any,
) -> Cycle:
    """Move a cycle on from what `cycle` shows; the change, its audit entry and its record are one transaction.

    `changes` are further columns (plan, plan_digest, manifest_digest, facts, reasons). Raises `IllegalTransition`,
    or `StaleCycle` when the row has moved on since it was read.
    """
    if state not in TRANSITIONS[cycle.state]:
        raise IllegalTransition(f"cycle {cycle.cycle_id} cannot go from {cycle.state} to {state}")
    changed = cycle.model_copy(
        update={"state": state, "version": cycle.version + 1, "updated_at": utc_now(), **changes},
    )
    row = changed.model_dump(mode="json")
    result = connection.execute(
        sa.update(cycles)
        .where(cycles.c.cycle_id == cycle.cycle_id, cycles.c.version == cycle.version)
        .values({name: row[name] for name in ("state", "version", "updated_at", *changes)}),
    )
    if result.rowcount != 1:
        raise StaleCycle(f"cycle {cycle.cycle_id} is no longer at version {cycle.version}")
    _tell(connection, changed, detail or {})
    notices.of_cycle(connection, changed)
    return changed


def save_manifest(connection: Connection, manifest: Manifest, digest: str) -> None:
    """Keep a cycle's manifest; a manifest once written is never changed."""
    row = {
        "cycle_id": manifest.cycle_id,
        "digest": digest,
        "document": manifest.model_dump(mode="json"),
        "created_at": utc_now(),
    }
    insert_new(connection, manifests, [row], ["cycle_id"])


def get_manifest(connection: Connection, cycle_id: str) -> Manifest:
    """A cycle's manifest; raises `sqlalchemy.exc.NoResultFound` before it has one."""
    row = connection.execute(sa.select(manifests.c.document).where(manifests.c.cycle_id == cycle_id)).one()
    return Manifest.model_validate(row.document)


def find_manifest(connection: Connection, cycle_id: str) -> Manifest | None:
    """A cycle's manifest; None before it has one."""
    row = connection.execute(sa.select(manifests.c.document).where(manifests.c.cycle_id == cycle_id)).one_or_none()
    return None if row is None else Manifest.model_validate(row.document)


def history(connection: Connection, cycle_id: str) -> list[dict[str, Any]]:
    """A cycle's changes in order: version, state, detail, time."""
    rows = connection.execute(
        sa.select(cycle_events).where(cycle_events.c.cycle_id == cycle_id).order_by(cycle_events.c.version),
    )
    return [plain(row) for row in rows]


def _tell(connection: Connection, cycle: Cycle, detail: dict[str, Any]) -> None:
    connection.execute(
        sa.insert(cycle_events).values(
            cycle_id=cycle.cycle_id,
            version=cycle.version,
            state=cycle.state.value,
            detail=detail,
            created_at=cycle.updated_at,
        ),
    )
    ended = cycle.state in TERMINAL_STATES
    outbox.audit(
        connection,
        "optimization_cycle" if ended else "cycle_transition",
        {
            "cycle_id": cycle.cycle_id,
            "model_id": cycle.model_id,
            "model_type": cycle.model_id,
            "domain": cycle.domain,
            "state": cycle.state.value,
            "trigger_type": cycle.trigger_type.value,
            "version": cycle.version,
            "success": cycle.state is CycleState.PROMOTED,
            "context": detail,
            "entry_id": f"cycle-{cycle.cycle_id}-{cycle.version}",
        },
    )
    record = CycleRecord(
        cycle_id=cycle.cycle_id,
        model_id=cycle.model_id,
        domain=cycle.domain,
        state=cycle.state,
        trigger_type=cycle.trigger_type,
        version=cycle.version,
        timestamp=cycle.updated_at,
    )
    outbox.publish(connection, CYCLES.name, cycle.model_id, record.model_dump(mode="json"))


def _cycle(row: sa.Row[Any]) -> Cycle:
    return Cycle.model_validate(dict(row._mapping))
