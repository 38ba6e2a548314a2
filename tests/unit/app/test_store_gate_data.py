"""What the gate decides inference by when its data comes from SQL: permissions, GPU hours used, machines."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from app.gate import read_tables
from app.store import Database, cycles, outbox, permissions, usage
from app.store.permissions import ChangeRefused, Revision
from app.store.tables import compute_reports, gpu_usage
from models.cycle import TriggerType

LEVELS = ["low", "medium", "high"]


def grant(database: Database, user: str, hours: float = 10, risk: str = "medium", by: str = "alice") -> Revision:
    with database.write() as connection:
        return permissions.grant(
            connection, user, gpu_hours_monthly=hours, max_risk_level=risk, risk_levels=LEVELS, changed_by=by
        )


def settle(database: Database, refusal: str | None = None) -> None:
    """Have the audit engine take, or refuse for good, what waits for it."""
    with database.write() as connection:
        for item in outbox.pending(connection):
            if refusal is None:
                outbox.mark_delivered(connection, [item.seq])
            else:
                outbox.mark_refused(connection, item.seq, refusal)


def job(database: Database, name: str, *, hours: float, gpus: int, user: str = "alice", ended: bool = True) -> None:
    """A job that has been at work for so many hours, up to now."""
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection,
            model_id=f"model-{name}",
            domain="default",
            trigger_type=TriggerType.MANUAL,
            requested_by=user,
            facts={},
        )
        assert cycle is not None
        usage.begin(connection, name, cycle_id=cycle.cycle_id, user_id=user, reporter="here", gpus=gpus)
        usage.seen(connection, name, ended=ended)
        shift(connection, name, hours)


def shift(connection: sa.Connection, name: str, hours: float) -> None:
    started = gpu_usage.c.started_at - hours * 3600.0
    connection.execute(sa.update(gpu_usage).where(gpu_usage.c.job_id == name).values(started_at=started))


def hours(database: Database) -> dict[str, float]:
    with database.read() as connection:
        return usage.hours_this_month(connection)


def test_a_permission_counts_once_it_is_in_the_audit_log(database: Database) -> None:
    assert read_tables(database)["user_permissions"] == {}
    assert not grant(database, "analyst-1").audited
    assert read_tables(database)["user_permissions"] == {}
    settle(database)
    assert read_tables(database)["user_permissions"] == {
        "analyst-1": {"gpu_hours_monthly": 10, "max_risk_level": "medium"}
    }
    with database.write() as connection:
        permissions.revoke(connection, "analyst-1", changed_by="bob")
    assert "analyst-1" in read_tables(database)["user_permissions"]
    settle(database)
    assert read_tables(database)["user_permissions"] == {}


def test_a_permission_that_the_audit_engine_refuses_never_counts(database: Database) -> None:
    grant(database, "analyst-1", hours=5)
    settle(database)
    grant(database, "analyst-1", hours=500)
    settle(database, refusal="no such entry")
    assert read_tables(database)["user_permissions"]["analyst-1"]["gpu_hours_monthly"] == 5
    with database.read() as connection:
        assert [change.audited for change in permissions.history(connection)] == [False, True]
        ((item, reason),) = outbox.refused(connection)
    assert (item.destination, reason) == (permissions.USER_PERMISSION, "no such entry")


@pytest.mark.parametrize(
    ("user", "amount", "risk", "by", "named"),
    [
        ("", 1.0, "low", "alice", "id"),
        ("a\nb", 1.0, "low", "alice", "id"),
        ("u" * 101, 1.0, "low", "alice", "id"),
        ("u", -1.0, "low", "alice", "-1"),
        ("u", float("nan"), "low", "alice", "nan"),
        ("u", float("inf"), "low", "alice", "inf"),
        ("u", 1.0, "Low", "alice", "'Low'"),
        ("u", 1.0, "low", " ", "who"),
    ],
)
def test_a_wrong_permission_is_refused(
    database: Database, user: str, amount: float, risk: str, by: str, named: str
) -> None:
    with pytest.raises(ChangeRefused, match=named):
        grant(database, user, amount, risk, by)
    with database.read() as connection:
        assert permissions.history(connection) == []
        assert outbox.pending(connection) == []


def test_who_has_no_permission_cannot_lose_it(database: Database) -> None:
    with database.write() as connection, pytest.raises(ChangeRefused, match="stranger"):
        permissions.revoke(connection, "stranger", changed_by="alice")


def test_gpu_hours_are_gpus_times_time_of_this_month(database: Database) -> None:
    now = datetime.now(UTC)
    month_s = (now - datetime(now.year, now.month, 1, tzinfo=UTC)).total_seconds()
    job(database, "short", hours=0.5, gpus=2)
    job(database, "without", hours=5, gpus=0)
    job(database, "others", hours=0.25, gpus=1, user="bob")
    # Began in the month before: only this month's part of it counts.
    job(database, "long", hours=month_s / 3600 + 100, gpus=1, user="carol")
    used = hours(database)
    assert set(used) == {"alice", "bob", "carol"}
    within = min(0.5, month_s / 3600)
    assert used["alice"] == pytest.approx(2 * within, abs=0.02)
    assert used["bob"] == pytest.approx(min(0.25, month_s / 3600), abs=0.02)
    assert used["carol"] == pytest.approx(month_s / 3600, abs=0.02)


def test_last_months_hours_do_not_count(database: Database) -> None:
    job(database, "old", hours=1, gpus=4)
    with database.write() as connection:
        back = 32 * 24 * 3600.0
        connection.execute(
            sa.update(gpu_usage).values(started_at=gpu_usage.c.started_at - back, seen_at=gpu_usage.c.seen_at - back)
        )
    assert hours(database) == {}


def test_a_job_counts_while_it_is_seen_and_no_longer(database: Database) -> None:
    job(database, "working", hours=0.2, gpus=1, ended=False)
    before = hours(database)
    assert hours(database) == before, "a job that nobody has seen since adds nothing"
    with database.write() as connection:
        shift(connection, "working", 0.3)
    assert hours(database)["alice"] > before["alice"]


def test_available_is_what_machines_report_less_what_is_at_work(database: Database) -> None:
    assert read_tables(database)["resources"] == {"available_gpus": None, "available_memory_gb": None}
    with database.write() as connection:
        usage.report(connection, "here", gpus=8, memory_gb=64.0)
        usage.report(connection, "there", gpus=1, memory_gb=16.0)
        usage.report(connection, "here", gpus=4, memory_gb=64.0)
    assert read_tables(database)["resources"] == {"available_gpus": 5, "available_memory_gb": 80.0}
    job(database, "working", hours=1, gpus=3, ended=False)
    job(database, "done", hours=1, gpus=3)
    assert read_tables(database)["resources"]["available_gpus"] == 2
    with database.write() as connection:
        stale = compute_reports.c.reported_at - 2 * usage.REPORT_VALID_S
        connection.execute(
            sa.update(compute_reports).where(compute_reports.c.reporter == "here").values(reported_at=stale)
        )
    assert read_tables(database)["resources"] == {"available_gpus": 1, "available_memory_gb": 16.0}


def test_a_dead_workers_gpus_are_free_again(database: Database) -> None:
    with database.write() as connection:
        usage.report(connection, "here", gpus=2, memory_gb=64.0)
    job(database, "killed", hours=1, gpus=2, ended=False)
    assert read_tables(database)["resources"]["available_gpus"] == 0
    with database.write() as connection:
        connection.execute(sa.update(gpu_usage).values(seen_at=gpu_usage.c.seen_at - 2 * usage.REPORT_VALID_S))
    assert read_tables(database)["resources"]["available_gpus"] == 2
