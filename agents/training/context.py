"""What every stage works with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa

from agents.training.at_work import AtWork
from agents.training.child import run_job
from agents.training.cluster.follow import ClusterJobs
from agents.training.config import CycleConfig
from agents.training.facts import Watchers
from agents.training.meter import GpuMeter
from agents.training.trace import CycleTrace, Untraced
from app.store import Database, progress
from app.telemetry import correlation
from models.audit import AuditEntry
from models.cycle import Cycle
from models.decision import GateDecision
from policies.gate.record import decision_entry

logger = logging.getLogger(__name__)
PROGRESS_INTERVAL_S = 0.5


class Gate(Protocol):
    """Decides actions from facts; never raises for the policy's sake."""

    async def decide(self, action: str, facts: dict[str, Any]) -> GateDecision: ...


class Audit(Protocol):
    """Takes an entry, or raises while it cannot."""

    async def log(self, entry: AuditEntry) -> Any: ...


@dataclass(slots=True)
class DecisionContext:
    """Store, gate and services of whoever has the gate decide about a cycle or what came of it."""

    config: CycleConfig
    database: Database
    gate: Gate
    audit: Audit
    probe: Callable[[], Awaitable[Watchers]]
    bounds: Callable[[], Awaitable[Mapping[str, Any]]]
    """The bounds of the gate's bundle in force; raises where they cannot be had."""

    async def decide(self, cycle: Cycle, action: str, facts: dict[str, Any]) -> GateDecision:
        """Ask the gate, and have the audit engine hold a conclusive answer before anybody acts on it."""
        decision = await self.gate.decide(action, facts)
        if decision.conclusive:
            entry = decision_entry(facts, decision, self.config.constitutional_hash)
            of_cycle = {"cycle_id": cycle.cycle_id, "model_id": cycle.model_id, "domain": cycle.domain}
            await self.audit.log(entry.model_copy(update=of_cycle))
        logger.info("gate: %s %s", action, decision.verdict, extra={"cycle_id": cycle.cycle_id})
        return decision


@dataclass(slots=True)
class StageContext(DecisionContext):
    """What the worker that runs a cycle has besides."""

    approved_models: Callable[[], Awaitable[frozenset[str]]]
    """The base models that the gate's bundle in force approves; raises where it cannot be had."""
    has_pii: Callable[[str], bool]
    public_training: int
    """How many public benign prompts of the constitution may be trained on."""
    constitution_digest: str
    holder: str
    machine: str
    """Name of the machine that the jobs run on; its GPUs are at work with them."""
    at_work: AtWork = field(default_factory=AtWork)
    """Shown by metrics."""
    trace: CycleTrace = field(default_factory=Untraced)
    cluster: ClusterJobs | None = None
    """Trains in a cluster; by a child of this process when None."""
    _told: dict[str, float] = field(default_factory=dict)
    _untold: dict[str, tuple[str, int, int, dict[str, Any]]] = field(default_factory=dict)
    """Progress that came too soon after the last that was written."""

    def domain_holder(self, cycle: Cycle) -> str:
        """In whose name the cycle's data domain is held."""
        return self.holder if self.cluster is None else self.cluster.holder(cycle.cycle_id)

    def is_left_at_work(self, cycle: Cycle) -> bool:
        """Whether the cycle's training goes on without this worker, and with it the hold on the domain."""
        return self.cluster is not None and self.cluster.is_at_work(cycle.cycle_id)

    async def job(self, cycle: Cycle, stage: str, specification: dict[str, Any]) -> dict[str, Any]:
        """Run a stage's job, its progress going to the store; raises `JobFailed`.

        A child process does it, but for training where there is a cluster for that.
        """

        meter = GpuMeter(self.database, cycle, self.machine)

        async def told(fields: dict[str, Any]) -> None:
            if (gpus := fields.pop("gpus", None)) is not None:
                await asyncio.to_thread(meter.begin, int(gpus))
            if fields:
                self.at_work.progress(stage, fields)
                await self._save_progress(cycle, stage, fields, meter)

        specification = {"cycle_id": cycle.cycle_id, **specification, "traceparent": correlation.current()}
        try:
            if stage == "train" and self.cluster is not None:
                return await self.cluster.run(cycle, specification, told)
            return await run_job(
                f"agents.training.jobs.{stage}",
                {"config": self.config.model_dump(mode="json"), **specification},
                told,
                self.config.job_timeout_s,
                processes=self.config.tuning.processes if stage == "train" else 1,
            )
        finally:
            if (told_last := self._untold.pop(cycle.cycle_id, None)) is not None:
                # How far a job came that died decides whether it is tried again.
                with contextlib.suppress(sa.exc.SQLAlchemyError):
                    await asyncio.shield(asyncio.to_thread(self._write_progress, cycle.cycle_id, *told_last, meter))
            self.at_work.idle()
            await asyncio.shield(asyncio.to_thread(meter.end))

    async def _save_progress(self, cycle: Cycle, stage: str, fields: dict[str, Any], meter: GpuMeter) -> None:
        done, total = int(fields.pop("done", 0)), int(fields.pop("total", 0))
        now = time.monotonic()
        if done < total and now - self._told.get(cycle.cycle_id, 0.0) < PROGRESS_INTERVAL_S:
            self._untold[cycle.cycle_id] = (stage, done, total, fields)
            return
        self._untold.pop(cycle.cycle_id, None)
        self._told[cycle.cycle_id] = now
        await asyncio.to_thread(self._write_progress, cycle.cycle_id, stage, done, total, fields, meter)

    def _write_progress(
        self, cycle_id: str, stage: str, done: int, total: int, detail: dict[str, Any], meter: GpuMeter
    ) -> None:
        with self.database.write() as connection:
            progress.save(connection, cycle_id, stage, done, total, detail)
            meter.tick(connection)
