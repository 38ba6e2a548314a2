"""`/health/live` and `/health/ready`: a consumer that died quietly is seen, one with nothing to do is let be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from web_rig import Rig

from agents.flow import Flow
from app.roles import Role
from app.store.database import Database
from app.web.health import CommitWatch
from app.workers import WorkerState


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_commits_or_has_nothing_to_commit_is_alive() -> None:
    clock = Clock()
    watch = CommitWatch(300.0, clock)
    for minute in range(20):
        clock.now = 60.0 * minute
        # 0 moves on, 1 is at its end, 2 reaches its end now and then.
        positions = {"0": (minute, 100), "1": (7, 7), "2": (minute // 4, minute // 4 + minute % 2)}
        assert watch.stalled(positions) == {}


def test_who_stands_still_before_the_end_is_not() -> None:
    clock = Clock()
    watch = CommitWatch(300.0, clock)
    assert watch.stalled({"0": (5, 9), "1": (1, 2)}) == {}
    clock.now = 299.0
    assert watch.stalled({"0": (5, 12), "1": (2, 3)}) == {}
    clock.now = 301.0
    assert watch.stalled({"0": (5, 12), "1": (2, 3)}) == {"0": 301.0}
    clock.now = 302.0
    assert watch.stalled({"0": (6, 12)}) == {}  # it goes on, and "1" is another worker's now
    clock.now = 700.0
    assert watch.stalled({"0": (6, 12), "1": (2, 3)}) == {"0": 398.0}  # "1" came back just now


class Stuck:
    """A source whose commits do not move."""

    def lag(self) -> dict[str, int]:
        return {}

    def open_records(self) -> int:
        return 0

    def committed(self) -> dict[str, tuple[int, int]]:
        return {"0": (5, 9)}


async def test_a_worker_that_stopped_committing_is_restarted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, more={"FLYWHEEL_WEB__STALLED_S": "0.05"})
    rig.state.flow = Flow()
    async with rig.client() as http:
        assert (await http.get("/health/live")).json() == {"status": "live"}
        rig.state.flow.begin(Stuck(), ())
        assert (await http.get("/health/live")).status_code == 200
        await asyncio.sleep(0.1)
        dead = await http.get("/health/live")
    assert dead.status_code == 503
    assert "nothing is committed on 1 partitions" in dead.text


@pytest.mark.parametrize(("role", "status"), [(Role.ROUTE, 200), (Role.CURATE, 503), (Role.MONITOR, 503)])
async def test_who_needs_the_store_is_ready_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Role, status: int
) -> None:
    rig = Rig(tmp_path, role)
    async with rig.client() as http:
        assert (await http.get("/health/ready")).status_code == 200

        def away(self: WorkerState) -> Database:
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("gone"))

        monkeypatch.setattr(WorkerState, "database", property(away))
        assert (await http.get("/health/ready")).status_code == status
