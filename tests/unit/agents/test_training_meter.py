"""A job's GPU hours go on the account of whoever requested its cycle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from agents.training.meter import GpuMeter
from app.store import Database, cycles, usage
from app.store.tables import gpu_usage
from models.cycle import Cycle, TriggerType

HOUR_S = 3600.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def cycle(database: Database) -> Cycle:
    with database.write() as connection:
        made = cycles.open_cycle(
            connection,
            model_id="model",
            domain="default",
            trigger_type=TriggerType.MANUAL,
            requested_by="alice",
            facts={},
        )
    assert made is not None
    return made


def row(database: Database) -> sa.Row[tuple[object, ...]]:
    with database.read() as connection:
        return connection.execute(sa.select(gpu_usage)).one()


def test_a_job_is_metered_from_its_model_to_its_end(database: Database, cycle: Cycle) -> None:
    meter = GpuMeter(database, cycle, "here")
    meter.begin(2)
    begun = row(database)
    assert (begun.user_id, begun.cycle_id, begun.reporter, begun.gpus) == ("alice", cycle.cycle_id, "here", 2)
    assert not begun.ended
    with database.write() as connection:
        # As if it had begun, and were last seen, an hour ago.
        columns = gpu_usage.c
        past = {"started_at": columns.started_at - HOUR_S, "seen_at": columns.seen_at - HOUR_S}
        connection.execute(sa.update(gpu_usage).values(**past))
        meter.tick(connection)
    ticked = row(database)
    assert ticked.seen_at - ticked.started_at == pytest.approx(HOUR_S, abs=30)
    assert not ticked.ended
    meter.end()
    assert row(database).ended
    with database.read() as connection:
        assert usage.hours_this_month(connection)["alice"] > 0


def test_a_job_that_never_loaded_its_model_used_nothing(database: Database, cycle: Cycle) -> None:
    meter = GpuMeter(database, cycle, "here")
    with database.write() as connection:
        meter.tick(connection)
    meter.end()
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(gpu_usage)).scalar_one() == 0


def test_a_store_that_is_away_at_the_end_does_not_hide_the_jobs_result(
    database: Database, cycle: Cycle, caplog: pytest.LogCaptureFixture
) -> None:
    meter = GpuMeter(database, cycle, "here")
    meter.begin(1)
    with database.write() as connection:
        connection.execute(sa.text("DROP TABLE gpu_usage"))
    meter.end()
    assert "was not written" in caplog.text
