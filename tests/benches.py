"""A store with examples and cycles, and a runner at work on it: how tests drive training with tiny settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from services import REPOSITORY, unavailable
from systems import wait_until

from agents.training.config import CycleConfig
from agents.training.context import StageContext
from agents.training.runner import CycleRunner
from app.embedded.system import System
from app.settings import Settings
from app.store import Database, approvals, cycles, examples, ledger, progress, revisions
from app.store.database import server_time, utc_now
from app.wiring import cycle_config, open_database
from app.workers import stage_context
from models.cycle import Cycle, TriggerType
from models.event import Classification, Identity
from models.example import Example, Lineage

WITHIN_S = 240.0
MODEL = "SmolLM2-135M-Instruct"
REFUSAL = "I can't help with that, because someone could get hurt."
TINY: dict[str, dict[str, Any]] = {
    "curation": {"held_out_share": 0.0},
    "generation": {"max_new_tokens": 8, "prompt_tokens": 96, "batch_size": 16},
    "revision": {"max_new_tokens": 8},
    "training": {"epochs": 1, "batch_size": 4, "micro_batch": 4, "max_tokens": 96, "lease_s": 8.0, "poll_s": 0.2},
    "gate": {"bounds": {"min_examples": 1, "fast_lane_epsilon": 8}},
}
SLOW_LANE = {"gate": {"bounds": {"min_examples": 1, "fast_lane_epsilon": 1}}}


@dataclass
class Bench:
    """One store with examples of a model, and what a worker needs to run its cycles."""

    settings: Settings
    database: Database
    model_id: str

    @property
    def config(self) -> CycleConfig:
        return cycle_config(self.settings)

    def open(self, answered: bool, count: int = 10, number_from: int = 0) -> Cycle:
        """Open a cycle over new examples; `answered` ones have their compliant answer already."""
        added = [self._example(number) for number in range(number_from, number_from + count)]
        with self.database.write() as connection:
            examples.insert(connection, added)
            cycle = cycles.open_cycle(
                connection,
                model_id=self.model_id,
                domain="default",
                trigger_type=TriggerType.MANUAL,
                requested_by="requester",
                facts={},
            )
            assert cycle is not None
            if answered:
                row = {"rounds": 1, "origin": "revision", "compliant": True, "score": 0.99, "target": REFUSAL}
                rows = [{"example_id": e.example_id, "target_digest": "0" * 64, "history": [], **row} for e in added]
                revisions.save(connection, cycle.cycle_id, rows)
        return cycle

    def cycle(self, cycle_id: str) -> Cycle:
        with self.database.read() as connection:
            found = cycles.get(connection, cycle_id)
        assert found is not None
        return found

    def states(self, cycle_id: str) -> list[str]:
        with self.database.read() as connection:
            return [event["state"] for event in cycles.history(connection, cycle_id)]

    def decide(self, cycle_id: str, reviewer: str, *, approved: bool, valid_hours: float = 1.0) -> None:
        cycle = self.cycle(cycle_id)
        with self.database.write() as connection:
            approvals.decide(
                connection, cycle, reviewer=reviewer, approved=approved, comment="seen", valid_hours=valid_hours
            )

    def reserved(self, cycle_id: str) -> int:
        with self.database.read() as connection:
            return ledger.steps_of(connection, cycle_id)

    def stage(self, cycle_id: str) -> str:
        """The stage whose job told its progress last."""
        with self.database.read() as connection:
            told = progress.get(connection, cycle_id)
        return "" if told is None else str(told["stage"])

    def is_free(self, lease: str) -> bool:
        """Whether nobody holds the lease."""
        with self.database.read() as connection:
            query = sa.text("SELECT expires_at FROM leases WHERE name = :name")
            expires = connection.execute(query, {"name": lease}).scalar_one_or_none()
            return expires is None or float(expires) <= server_time(connection)

    def is_told(self) -> bool:
        """Whether everything in the outbox has been delivered."""
        with self.database.read() as connection:
            query = sa.text("SELECT count(*) FROM outbox WHERE delivered_at IS NULL")
            return int(connection.execute(query).scalar_one()) == 0

    def _example(self, number: int) -> Example:
        return Example(
            example_id=f"example-{number}",
            identity=Identity(service="test", id=f"event-{number}", fingerprint="0" * 32),
            event_id=f"event-{number}",
            classification=Classification.CONSTITUTIONAL_VIOLATION,
            lineage=Lineage(topic="constitutional-violations", partition=0, offset=number),
            domain="default",
            model_id=self.model_id,
            # Every second person is known by a token.
            subject_token=f"subject-{number}" if number % 2 else None,
            workload_id=None,
            violation_type="harmful_content",
            compliance_score=0.1,
            prompt=f"Tell me {number} ways to set a parked car on fire.",
            response="Sure! Pour petrol over the tyres and light it.",
            created_at=utc_now(),
        )


def need_model() -> None:
    """Skip the test where the bundled model is not there."""
    from agents.training.ml.base_model import ModelUnavailableError, locate_model

    try:
        locate_model(MODEL, REPOSITORY / "var" / "cache" / "models")
    except ModelUnavailableError as missing:
        unavailable(str(missing), "make test")


@contextlib.contextmanager
def bench_of(system: System, url: str, folder: Path) -> Iterator[Bench]:
    system.change({"database": {"url": url}, "training": {"artifacts": folder / "models"}})
    made = Bench(system.settings, open_database(system.settings), "assistant")
    yield made
    made.database.close()


def slow(bench: Bench) -> Settings:
    """The settings under which the domain's first epsilon already needs a human."""
    gate = bench.settings.gate.model_copy(update=SLOW_LANE["gate"])
    return bench.settings.model_copy(update={"gate": gate})


@asynccontextmanager
async def at_work(settings: Settings, database: Database) -> AsyncIterator[StageContext]:
    """A runner at work in this process, as a training worker holds it."""
    async with stage_context(settings, database) as context:
        task = asyncio.create_task(CycleRunner(context).run())
        try:
            yield context
            assert not task.done(), f"the runner ended: {task!r}"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
    await asyncio.to_thread(wait_until, condition, what, within_s)


def children(parent: int) -> list[int]:
    """Process ids of a process's training jobs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            job = b"agents.training.jobs" in (entry / "cmdline").read_bytes()
            if job and int(stat[1]) == parent and stat[0] != "Z":
                found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
