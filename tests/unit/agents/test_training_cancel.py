"""A cycle can be cancelled in every state: the stage at work is let go, nothing moves it on, its model is free."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agents.training import runner as runners
from agents.training import stages
from agents.training.planning import budget_warning
from agents.training.runner import CycleRunner
from agents.training.trace import Untraced
from app.store import Database, cycles, leases
from models.cycle import Cycle, CycleState, TriggerType

ON_THE_WAY = (
    CycleState.PROPOSED,
    CycleState.PREPARING,
    CycleState.REVISING,
    CycleState.AWAITING_APPROVAL,
    CycleState.APPROVED,
    CycleState.TRAINING,
    CycleState.EVALUATING,
    CycleState.AWAITING_PROMOTION,
)
"""The states that are not final, in an order that a cycle may go through."""


def cycle_in(database: Database, state: CycleState) -> Cycle:
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection, model_id="m", domain="d", trigger_type=TriggerType.MANUAL, requested_by="a", facts={}
        )
        assert cycle is not None
        for following in ON_THE_WAY[1 : ON_THE_WAY.index(state) + 1]:
            cycle = cycles.transition(connection, cycle, following)
    return cycle


@pytest.mark.parametrize("state", ON_THE_WAY)
async def test_a_cycle_is_cancelled_in_any_state(
    database: Database, state: CycleState, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def endless(_: Any, cycle: Cycle) -> Cycle | None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            let_go.set()
        return cycle

    monkeypatch.setattr(runners, "STAGES", dict.fromkeys(ON_THE_WAY, endless))
    cycle = cycle_in(database, state)
    context: Any = SimpleNamespace(
        config=SimpleNamespace(lease_s=0.4, poll_s=0.05),
        database=database,
        holder="worker",
        trace=Untraced(),
        domain_holder=lambda _: "worker",
        is_left_at_work=lambda _: False,
    )
    runner = CycleRunner(context)
    work = asyncio.create_task(runner.run_once())
    await asyncio.wait_for(begun.wait(), 20)
    with database.write() as connection:
        cycles.transition(connection, cycle, CycleState.CANCELLED, {"cancelled_by": "operator"})
    await asyncio.wait_for(let_go.wait(), 20)
    await asyncio.wait_for(work, 20)
    with database.write() as connection:
        states = [event["state"] for event in cycles.history(connection, cycle.cycle_id)]
        assert states[-2:] == [state.value, "cancelled"]
        assert leases.acquire(connection, "model:m", "another", 1.0) is not None
    begun.clear()
    await runner.run_once()
    assert not begun.is_set(), "a cancelled cycle was taken up"


def test_a_job_that_gets_further_each_time_is_not_given_up(database: Database) -> None:
    """Three deaths at one place end a cycle; three with progress in between do not."""
    from agents.training.child import JobFailed
    from app.store import progress

    context: Any = SimpleNamespace(
        config=SimpleNamespace(lease_s=1.0, poll_s=0.1),
        database=database,
        holder="worker",
        trace=Untraced(),
        domain_holder=lambda _: "worker",
        is_left_at_work=lambda _: False,
    )
    runner = CycleRunner(context)
    cycle = cycle_in(database, CycleState.TRAINING)

    def die(done: int) -> CycleState:
        with database.write() as connection:
            progress.save(connection, cycle.cycle_id, "train", done, 100, {})
        asyncio.run(runner._handle(cycle, JobFailed("Died", "killed")))
        with database.read() as connection:
            found = cycles.get(connection, cycle.cycle_id)
        assert found is not None
        return found.state

    assert [die(done) for done in (0, 1, 2, 3, 4, 5)] == [CycleState.TRAINING] * 6
    assert [die(5), die(5)] == [CycleState.TRAINING, CycleState.FAILED]


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [(6.3, None), (6.4, "80% of the budget is used, more than 80%"), (7.9, "99% of the budget is used, more than 95%")],
)
def test_the_log_warns_of_a_budget_that_comes_to_its_end(
    epsilon: float, said: str | None, caplog: pytest.LogCaptureFixture, database: Database
) -> None:
    assert budget_warning(epsilon, 8.0) == said
    context: Any = SimpleNamespace(config=SimpleNamespace(privacy=SimpleNamespace(epsilon=8.0)))
    stages._warn_of_budget(context, cycle_in(database, CycleState.TRAINING), epsilon, "now")
    expected = [] if said is None else [f"privacy of domain d, now: {said}"]
    assert [record.getMessage() for record in caplog.records if record.name == stages.__name__] == expected
