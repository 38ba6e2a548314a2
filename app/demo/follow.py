"""Watches the demo's cycle in the store, from opening to end, and shows each of its stages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from app.demo.progress import StageBar, Stages
from app.store import Database, cycles, progress
from models.cycle import TERMINAL_STATES, Cycle, CycleState

OPEN_WITHIN_S = 60.0
POLL_S = 0.25
LABELS = {
    CycleState.PROPOSED: "cycle opened",
    CycleState.PREPARING: "snapshot of the data",
    CycleState.REVISING: "critique and revision",
    CycleState.AWAITING_APPROVAL: "waiting for approval",
    CycleState.APPROVED: "policy gate, last check",
    CycleState.TRAINING: "private fine-tuning",
    CycleState.EVALUATING: "base against candidate",
    CycleState.AWAITING_PROMOTION: "waiting for approval",
}


class CycleEnded(RuntimeError):
    """The cycle did not open, or ended other than by promotion or a reasoned refusal."""


async def follow_cycle(database: Database, model_id: str, stages: Stages, check: Callable[[], None]) -> Cycle:
    """Wait for the model's cycle and show it until it ends; raises `CycleEnded`."""
    with stages.stage("curate", "collecting examples"):
        cycle = await _opened(database, model_id, check)
    while cycle.state not in TERMINAL_STATES:
        state = cycle.state
        with stages.stage(state.value, LABELS[state]) as bar:
            while cycle.state is state:
                check()
                await asyncio.sleep(POLL_S)
                cycle = await asyncio.to_thread(_read, database, cycle.cycle_id, bar)
    if cycle.state in {CycleState.FAILED, CycleState.CANCELLED}:
        why = "; ".join(reason["message"] for reason in cycle.reasons)
        raise CycleEnded(f"cycle {cycle.cycle_id} ended as {cycle.state}: {why}")
    return cycle


async def _opened(database: Database, model_id: str, check: Callable[[], None]) -> Cycle:
    deadline = time.monotonic() + OPEN_WITHIN_S
    while time.monotonic() < deadline:
        check()
        found = await asyncio.to_thread(_newest, database, model_id)
        if found is not None:
            return found
        await asyncio.sleep(POLL_S)
    raise CycleEnded(
        f"no cycle opened for {model_id} within {OPEN_WITHIN_S:.0f} s: fewer violations than curation.min_examples asks"
    )


def _newest(database: Database, model_id: str) -> Cycle | None:
    with database.read() as connection:
        return next((c for c in cycles.list_cycles(connection) if c.model_id == model_id), None)


def _read(database: Database, cycle_id: str, bar: StageBar) -> Cycle:
    with database.read() as connection:
        cycle = cycles.get(connection, cycle_id)
        seen = progress.get(connection, cycle_id)
    if cycle is None:
        raise CycleEnded(f"cycle {cycle_id} is gone from the store")
    if seen is not None and seen["stage"] in _JOB_OF.get(cycle.state, ()):
        bar.update(seen["done"], seen["total"], _note(seen["detail"]))
    return cycle


_JOB_OF = {
    CycleState.REVISING: ("revise",),
    CycleState.TRAINING: ("train",),
    CycleState.EVALUATING: ("evaluate",),
}


def _note(detail: dict[str, Any]) -> str:
    if "epsilon" in detail:
        return f"epsilon {detail['epsilon']:.2f}, {detail['tokens_per_s']} tokens/s"
    if "generated" in detail:
        return f"round {detail['round']}: {detail['generated']} of {detail['of']} written"
    return f"round {detail['round']}" if "round" in detail else ""
