"""Versions of models as tests want them in the registry: trained by a cycle, with an adapter on disk and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from agents.training.adapter import ADAPTER_FILES, adapter_digest
from app.store import cycles, registry
from models.cycle import Cycle, CycleState, TriggerType

STATEMENT: dict[str, Any] = {
    "domain": "default",
    "cohort": 0,
    "epsilon": 4.0,
    "delta": 1e-5,
    "steps": 10,
    "non_private": False,
    "not_covered": ["the promotion itself"],
}
GOOD: dict[str, Any] = {
    "adherence": {"base": 0.1, "candidate": 0.97, "interval": {"candidate": [0.93, 0.99]}, "n": 120},
    "over_refusal": {"base": 0.02, "candidate": 0.05, "interval": {"candidate": [0.02, 0.1]}, "n": 120},
    "held_out_loss": {"base": 2.0, "candidate": 1.9, "ratio": 0.95, "n": 20},
    "second_evaluator": {"name": "phrases of refusal"},
    "reloaded_from_disk": True,
    "evaluated_at": 1_790_000_000.0,
}
BAD: dict[str, Any] = GOOD | {"over_refusal": GOOD["over_refusal"] | {"candidate": 0.4}}
WAY = (
    CycleState.PREPARING,
    CycleState.REVISING,
    CycleState.APPROVED,
    CycleState.TRAINING,
    CycleState.EVALUATING,
)


def write_adapter(folder: Path, content: bytes = b"weights") -> str:
    """Write an adapter's two files and return their digest."""
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        (folder / name).write_bytes(name.encode() + content)
    return adapter_digest(folder)


def trained(
    connection: Connection,
    folder: Path,
    *,
    model: str = "m",
    state: CycleState = CycleState.REJECTED,
    evaluation: dict[str, Any] | None = GOOD,
    requested_by: str = "requester",
) -> str:
    """A version whose cycle ended in `state` (or stopped there); returns its id."""
    cycle = cycles.open_cycle(
        connection,
        model_id=model,
        domain="default",
        trigger_type=TriggerType.MANUAL,
        requested_by=requested_by,
        facts={},
    )
    assert cycle is not None
    for following in WAY[: WAY.index(state) + 1] if state in WAY else WAY:
        digest = "d" * 64 if following is CycleState.APPROVED else cycle.plan_digest
        cycle = cycles.transition(connection, cycle, following, plan_digest=digest)
    path = folder / cycle.cycle_id / "adapter"
    digest = write_adapter(path, cycle.cycle_id.encode())
    registry.add_version(
        connection,
        {
            "version_id": cycle.cycle_id,
            "model_id": model,
            "cycle_id": cycle.cycle_id,
            "base_model": "small",
            "path": str(path),
            "digest": digest,
            "statement": STATEMENT | {"cycle_id": cycle.cycle_id},
        },
    )
    if evaluation is not None:
        registry.set_evaluation(connection, cycle.cycle_id, evaluation | {"adapter_digest": digest})
    if state not in WAY:
        end(connection, cycle, state)
    return cycle.cycle_id


def end(connection: Connection, cycle: Cycle, state: CycleState) -> None:
    """End a cycle as its stage does, with the deployment where it is promoted."""
    if state is CycleState.PROMOTED:
        registry.deploy(connection, cycle.model_id, cycle.cycle_id, f"cycle {cycle.cycle_id}")
    cycles.transition(connection, cycle, state)
