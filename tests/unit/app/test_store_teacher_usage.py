"""What was asked of a teacher is counted before it is asked, by many at once, and kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.store import Database, cycles, teacher_usage
from models.cycle import TriggerType


@pytest.fixture
def cycle_id(database: Database) -> str:
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection, model_id="m", domain="d", trigger_type=TriggerType.MANUAL, requested_by="alice", facts={}
        )
    assert cycle is not None
    return cycle.cycle_id


def test_a_cycle_that_asked_nobody_has_no_row(database: Database, cycle_id: str) -> None:
    with database.read() as connection:
        assert teacher_usage.of_cycle(connection, cycle_id) == []


def test_requests_and_what_they_used_add_up(database: Database, cycle_id: str) -> None:
    def ask(number: int) -> None:
        with database.write() as connection:
            teacher_usage.reserve(connection, cycle_id, "http://teacher/v1", "large")
        told = None if number == 0 else 10
        with database.write() as connection:
            teacher_usage.used(
                connection,
                cycle_id,
                "http://teacher/v1",
                "large",
                prompt_tokens=told,
                completion_tokens=None if told is None else 2,
                cost=0.25 if told else 0.0,
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(12)))
    with database.read() as connection:
        [row] = teacher_usage.of_cycle(connection, cycle_id)
    assert (row["requests"], row["untold"]) == (12, 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (110, 22)
    assert row["cost"] == pytest.approx(2.75)


def test_a_reservation_tells_what_all_teachers_of_the_cycle_have_used(database: Database, cycle_id: str) -> None:
    with database.write() as connection:
        assert teacher_usage.reserve(connection, cycle_id, "http://teacher/v1", "large") == 0
        teacher_usage.used(
            connection, cycle_id, "http://teacher/v1", "large", prompt_tokens=30, completion_tokens=12, cost=0.1
        )
        assert teacher_usage.reserve(connection, cycle_id, "http://teacher/v1", "larger") == 42
        assert [row["model"] for row in teacher_usage.of_cycle(connection, cycle_id)] == ["large", "larger"]
