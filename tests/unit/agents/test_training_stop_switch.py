"""The stop switch: a runner takes nothing up while it is on, and lets go of what it is at."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agents.training import runner as runners
from agents.training.runner import CycleRunner
from agents.training.trace import Untraced
from app.store import Database, cycles, outbox, switches
from models.cycle import Cycle, CycleState, TriggerType


class Stage:
    """A stage that works until it is let go; what becomes of it is written down."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, _: Any, cycle: Cycle) -> Cycle | None:
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_a_cycle_stands_still_and_goes_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setitem(runners.STAGES, CycleState.PROPOSED, stage)
    config = SimpleNamespace(lease_s=0.4, poll_s=0.05)
    context: Any = SimpleNamespace(
        config=config,
        database=database,
        holder="worker",
        trace=Untraced(),
        domain_holder=lambda _: "worker",
        is_left_at_work=lambda _: False,
    )
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection, model_id="m", domain="d", trigger_type=TriggerType.MANUAL, requested_by="a", facts={}
        )
    assert cycle is not None
    task = asyncio.create_task(CycleRunner(context).run())
    try:
        await asyncio.wait_for(stage.begun.wait(), 20)
        with database.write() as connection:
            switches.halt(connection, changed_by="ann")
        await asyncio.wait_for(stage.cancelled.wait(), 20)
        stage.begun.clear()
        with pytest.raises(TimeoutError):  # not taken up again: ten looks long
            await asyncio.wait_for(stage.begun.wait(), 0.5)
        with database.write() as connection:
            switches.resume(connection, changed_by="ann")
            outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection)])
        await asyncio.wait_for(stage.begun.wait(), 20)
        with database.read() as connection:
            found = cycles.get(connection, cycle.cycle_id)
        assert found is not None
        assert found.state is CycleState.PROPOSED  # it was neither cancelled nor failed meanwhile
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
