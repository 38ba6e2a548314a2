"""Approvals: a named person's word on one exact plan, never the requester's own."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import Database, approvals, cycles, outbox
from app.store.outbox import OutboxItem
from app.store.tables import approvals as approvals_table
from models.cycle import Cycle, CycleState, TriggerType


def opened(connection: Connection) -> Cycle:
    cycle = cycles.open_cycle(
        connection, model_id="m", domain="d", trigger_type=TriggerType.MANUAL, requested_by="alice", facts={}
    )
    assert cycle is not None
    return cycle


def told(database: Database) -> list[OutboxItem]:
    with database.read() as connection:
        return outbox.pending(connection)


def planned(connection: Connection) -> Cycle:
    cycle = opened(connection)
    for state in (CycleState.PREPARING, CycleState.REVISING):
        cycle = cycles.transition(connection, cycle, state)
    return cycles.transition(connection, cycle, CycleState.AWAITING_APPROVAL, plan_digest="0" * 64)


def decisions(connection: Connection) -> list[Any]:
    return list(connection.execute(sa.select(approvals_table)))


def test_the_last_word_on_one_thing_is_not_the_last_word_on_another(database: Database) -> None:
    with database.write() as connection:
        text = planned(connection)
        first = approvals.decide(connection, text, reviewer="bob", approved=True, comment="the text")
        revising = cycles.transition(connection, text, CycleState.REVISING)
        plan = cycles.transition(connection, revising, CycleState.AWAITING_APPROVAL, plan_digest="1" * 64)
        second = approvals.decide(connection, plan, reviewer="carol", approved=False, comment="the plan")
        found = [approvals.latest(connection, plan.cycle_id, digest) for digest in (None, "0" * 64, "1" * 64, "2" * 64)]
    assert [row and row.approval_id for row in found] == [second, first, second, None]


def test_an_approval_binds_to_the_plan_and_is_told(database: Database) -> None:
    with database.write() as connection:
        cycle = planned(connection)
        assert approvals.latest(connection, cycle.cycle_id) is None
        refused = approvals.decide(connection, cycle, reviewer="bob", approved=False, comment="not yet")
        approved = approvals.decide(connection, cycle, reviewer="carol", approved=True, comment="", valid_hours=1.0)
        latest = approvals.latest(connection, cycle.cycle_id)
    assert latest is not None
    assert latest.approval_id == approved != refused
    assert (latest.approved, latest.reviewer, latest.plan_digest) == (True, "carol", "0" * 64)
    assert latest.created_at < latest.expires_at
    entries = [item.payload for item in told(database) if item.destination == "approval"]
    assert [entry["entry_id"] for entry in entries] == [f"approval-{refused}", f"approval-{approved}"]
    assert entries[1]["context"] == {"approved": True, "reviewer": "carol", "plan_digest": "0" * 64}


def test_the_requester_cannot_approve(database: Database) -> None:
    with database.write() as connection:
        cycle = planned(connection)
    before = told(database)
    with pytest.raises(approvals.ApprovalRefused, match="alice requested"), database.write() as connection:
        approvals.decide(connection, cycle, reviewer="alice", approved=True, comment="")
    with database.read() as connection:
        assert decisions(connection) == []
    assert told(database) == before


def test_a_cycle_without_a_plan_cannot_be_approved(database: Database) -> None:
    with database.write() as connection:
        cycle = opened(connection)
        with pytest.raises(approvals.ApprovalRefused, match="no plan yet"):
            approvals.decide(connection, cycle, reviewer="bob", approved=True, comment="")
        assert decisions(connection) == []


def test_the_requester_is_known_however_the_name_is_written(database: Database) -> None:
    with database.write() as connection, pytest.raises(approvals.ApprovalRefused, match="requested"):
        approvals.decide(connection, planned(connection), reviewer=" Alice", approved=True, comment="")


def test_an_ended_cycle_has_nothing_left_to_decide(database: Database) -> None:
    with database.write() as connection:
        ended = cycles.transition(connection, planned(connection), CycleState.CANCELLED)
        with pytest.raises(approvals.ApprovalRefused, match="ended"):
            approvals.decide(connection, ended, reviewer="bob", approved=True, comment="")
        assert decisions(connection) == []
