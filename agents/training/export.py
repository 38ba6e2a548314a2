"""May this cycle's text be sent to the teacher? Asked of the gate each time before any is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from agents.training import facts, planning
from agents.training.config import TeacherConfig
from agents.training.context import StageContext
from agents.training.facts import Watchers
from app.store import approvals, cycles, examples
from models.cycle import Cycle
from models.decision import GateDecision


@dataclass(frozen=True, slots=True)
class Asked:
    """The gate's answer, and the digest that an approval binds to."""

    decision: GateDecision
    digest: str

    def waiting(self, teacher: TeacherConfig) -> dict[str, Any]:
        """What the cycle's facts say while a reviewer is asked."""
        return {"awaits": True, "endpoint": teacher.url, "model": teacher.model, "digest": self.digest}


async def ask(context: StageContext, cycle: Cycle, teacher: TeacherConfig, watchers: Watchers) -> Asked:
    """Ask the gate whether the texts of the cycle's snapshot may be sent to the teacher."""
    digest = planning.export_digest(teacher.url, teacher.model, cycle.manifest_digest or "")
    pii_found, approval = await asyncio.to_thread(_measure, context, cycle, digest)
    approved = facts.approval_facts(cycle, approval, digest)
    measured = facts.teacher_export_facts(context.config, teacher, pii_found, watchers, approved)
    return Asked(await context.decide(cycle, "teacher_export", measured), digest)


def awaited(cycle: Cycle) -> bool:
    """Whether what the cycle waits for is that its text may be sent to a teacher."""
    return bool(cycle.facts.get("teacher", {}).get("awaits"))


def concerns(cycle: Cycle, approval: Any) -> bool:
    """Whether a reviewer's decision was about sending text to the teacher, and not about the plan."""
    return approval is not None and approval.plan_digest == cycle.facts.get("teacher", {}).get("digest")


def _measure(context: StageContext, cycle: Cycle, digest: str) -> tuple[int, Any]:
    with context.database.read() as connection:
        members = [member.example_id for member in cycles.get_manifest(connection, cycle.cycle_id).members]
        stored = examples.get(connection, members)
        approval = approvals.latest(connection, cycle.cycle_id, digest)
    texts = [text for example in stored.values() for text in (example.prompt, example.response)]
    return sum(1 for text in texts if context.has_pii(text)), approval
