"""`/cycles/ID`: one cycle, from its opening to its end, and the decisions of people on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from app.store import approvals, cycles, examples, progress, registry, revisions, teacher_usage
from app.store.cycles import StaleCycle
from app.web.charts import bars
from app.web.console.audit_log import AuditAway, AuditReader
from app.web.console.overview import CycleLine, Record, cycle_line, halted
from app.web.console.parts import Console, absent, visible
from app.web.identity import Identity, Right
from app.web.security import REPORT_POLICY
from models.cycle import TERMINAL_STATES, Cycle, CycleState
from models.decision import APPROVAL_PREFIX

SAMPLE = 5
DECISIONS_WITHIN_S = 1.0
REPORT = "report.html"
AWAITS = {CycleState.AWAITING_APPROVAL: "its plan", CycleState.AWAITING_PROMOTION: "its promotion"}


class Revised(Record):
    """An example beside what critique and revision made of it. Event text: for those with the right alone."""

    example_id: str
    violation_type: str
    prompt: str
    response: str
    target: str
    origin: str
    rounds: int
    compliant: bool
    score: float


class Verdict(Record):
    """One decision of the policy gate: what was asked, from which facts, and why not."""

    at: str
    action: str
    allow: bool
    needs_person: bool
    """Only a person's approval is missing: it waits, and is not refused."""
    lane: str
    engine: str
    reasons: list[str]
    facts: dict[str, Any]


class ManifestSummary(Record):
    """A snapshot in figures; ids and keyed digests stand in the store."""

    members: int
    held_out: int
    units: int
    public_benign: int
    cohort: int
    excluded: dict[str, int]
    by_violation: dict[str, int]
    digest: str | None


class CycleView(Record):
    """Everything on the page. `revisions` is None for those who may not see event text."""

    cycle: CycleLine
    version: int
    plan: dict[str, Any] | None
    plan_digest: str | None
    facts: dict[str, Any]
    progress: dict[str, Any] | None
    teacher: list[dict[str, Any]]
    history: list[dict[str, Any]]
    approvals: list[dict[str, Any]]
    manifest: ManifestSummary | None
    revisions: list[Revised] | None
    evaluation: dict[str, Any] | None
    statement: dict[str, Any] | None
    has_report: bool
    awaits: str | None
    is_open: bool
    halted: str | None
    decisions: list[Verdict] = Field(default_factory=list)
    decisions_problem: str | None = None


class Word(BaseModel):
    """A person's decision on what the cycle waits for. `by`: needed only where nobody is asked who they are."""

    model_config = ConfigDict(extra="forbid")

    approve: bool
    comment: str = Field("", max_length=1000)
    by: str | None = None


class Cancel(BaseModel):
    """Who cancels, and why."""

    model_config = ConfigDict(extra="forbid")

    comment: str = Field("", max_length=1000)
    by: str | None = None


class Done(Record):
    """What an act did, in a sentence."""

    said: str


def add(app: FastAPI, console: Console, audit: AuditReader) -> None:
    """Add the page, its JSON, and what can be done to a cycle."""
    may = Depends(console.guard.needs(Right.VIEW))
    may_review = Depends(console.guard.needs(Right.REVIEW))
    may_operate = Depends(console.guard.needs(Right.OPERATE))

    async def view(identity: Identity, cycle_id: str) -> CycleView:
        shown = await console.read(lambda connection: _read(console, identity, connection, cycle_id))
        try:
            found = await audit.search(DECISIONS_WITHIN_S, cycle_id=cycle_id, event_type="gate_decision")
        except AuditAway as away:
            return shown.model_copy(update={"decisions_problem": str(away)})
        return shown.model_copy(update={"decisions": [_verdict(one.body, one.timestamp) for one in found.entries]})

    @app.get("/cycles/{cycle_id}", response_class=HTMLResponse)
    async def page(request: Request, cycle_id: str, identity: Identity = may) -> HTMLResponse:
        """A cycle as a page."""
        shown = await view(identity, cycle_id)
        plots = [
            (title, bars((shown.evaluation or {}).get(name)), (shown.evaluation or {}).get(name, {}).get("n"))
            for name, title in (("adherence", "Adherence on harmful prompts"), ("over_refusal", "Over-refusal"))
        ]
        context = {"c": shown, "plots": [plot for plot in plots if plot[1]]}
        return await console.page(request, identity, "cycle.html", context)

    @app.get("/api/v1/cycles/{cycle_id}", tags=["cycles"])
    async def cycle_json(cycle_id: str, identity: Identity = may) -> CycleView:
        """One cycle: history, facts, reasons, plan, manifest, evaluation, decisions."""
        return await view(identity, cycle_id)

    @app.get("/cycles/{cycle_id}/report", response_class=FileResponse)
    async def report(cycle_id: str, identity: Identity = may) -> Response:
        """The report of the cycle's evaluation, as its job wrote it."""
        await console.read(lambda connection: _find(connection, identity, cycle_id))
        path = _report(console, cycle_id)
        if path is None:
            raise absent(f"report of cycle {cycle_id}")
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    @app.post("/cycles/{cycle_id}/decide", include_in_schema=False)
    async def decide_form(request: Request, cycle_id: str, identity: Identity = may_review) -> Response:
        """Approve or reject, from the page."""
        fields = await console.guard.form(request, identity)
        word = Word(
            approve=fields.get("word") == "approve", comment=fields.get("comment", "")[:1000], by=fields.get("by")
        )
        return console.done(f"/cycles/{cycle_id}", await _decide(console, identity, cycle_id, word))

    @app.post("/cycles/{cycle_id}/cancel", include_in_schema=False)
    async def cancel_form(request: Request, cycle_id: str, identity: Identity = may_operate) -> Response:
        """Cancel, from the page."""
        fields = await console.guard.form(request, identity)
        asked = Cancel(comment=fields.get("comment", "")[:1000], by=fields.get("by"))
        return console.done(f"/cycles/{cycle_id}", await _cancel(console, identity, cycle_id, asked))

    @app.post("/api/v1/cycles/{cycle_id}/decision", tags=["cycles"])
    async def decide_json(cycle_id: str, word: Word, identity: Identity = may_review) -> Done:
        """Approve or reject what the cycle waits for. Whoever requested the cycle cannot (409)."""
        return Done(said=await _decide(console, identity, cycle_id, word))

    @app.post("/api/v1/cycles/{cycle_id}/cancel", tags=["cycles"])
    async def cancel_json(cycle_id: str, asked: Cancel, identity: Identity = may_operate) -> Done:
        """Cancel a cycle; what it has spent of the budget stays spent."""
        return Done(said=await _cancel(console, identity, cycle_id, asked))


async def _decide(console: Console, identity: Identity, cycle_id: str, word: Word) -> str:
    by = identity.acting(word.by)

    def change(connection: Connection) -> str:
        cycle = _find(connection, identity, cycle_id)
        hours = console.settings.gate.approval_hours
        approvals.decide(connection, cycle, reviewer=by, approved=word.approve, comment=word.comment, valid_hours=hours)
        return f"{by} {'approved' if word.approve else 'rejected'} {_waits_for(cycle) or 'the plan'} of {cycle_id}."

    try:
        return await console.write(change)
    except approvals.ApprovalRefused as refusal:
        raise HTTPException(409, str(refusal)) from None


async def _cancel(console: Console, identity: Identity, cycle_id: str, asked: Cancel) -> str:
    by = identity.acting(asked.by)

    def change(connection: Connection) -> None:
        cycle = _find(connection, identity, cycle_id)
        if cycle.state in TERMINAL_STATES:
            raise HTTPException(409, f"cycle {cycle_id} is {cycle.state} already")
        detail = {"cancelled_by": by, "comment": asked.comment}
        cycles.transition(connection, cycle, CycleState.CANCELLED, detail)

    for _ in range(5):
        try:
            await console.write(change)
        except StaleCycle:
            continue
        return f"{by} cancelled {cycle_id}; what it has spent of the budget stays spent."
    raise HTTPException(409, f"cycle {cycle_id} changes all the time: try again")


def _find(connection: Connection, identity: Identity, cycle_id: str) -> Cycle:
    cycle = cycles.get(connection, cycle_id)
    if cycle is None:
        raise absent(f"cycle {cycle_id!r}")
    visible(identity, cycle.domain, f"cycle {cycle_id!r}")
    return cycle


def _read(console: Console, identity: Identity, connection: Connection, cycle_id: str) -> CycleView:
    cycle = _find(connection, identity, cycle_id)
    version = registry.version_of_cycle(connection, cycle_id)
    evaluation = cycle.facts.get("evaluation") or (None if version is None else version.evaluation)
    facts = {name: value for name, value in cycle.facts.items() if name not in {"evaluation", "privacy"}}
    return CycleView(
        cycle=cycle_line(cycle),
        version=cycle.version,
        plan=None if cycle.plan is None else cycle.plan.model_dump(mode="json"),
        plan_digest=cycle.plan_digest,
        facts=facts,
        progress=progress.get(connection, cycle_id),
        teacher=teacher_usage.of_cycle(connection, cycle_id),
        history=cycles.history(connection, cycle_id),
        approvals=approvals.of_cycle(connection, cycle_id),
        manifest=_manifest(connection, cycle),
        revisions=_sample(connection, cycle_id) if identity.may(Right.REVIEW) else None,
        evaluation=evaluation,
        statement=cycle.facts.get("privacy") or (None if version is None else version.statement),
        has_report=_report(console, cycle_id) is not None,
        awaits=_waits_for(cycle),
        is_open=cycle.state not in TERMINAL_STATES,
        halted=halted(connection),
    )


def _waits_for(cycle: Cycle) -> str | None:
    if cycle.state is CycleState.AWAITING_APPROVAL and cycle.facts.get("teacher", {}).get("awaits"):
        teacher = cycle.facts["teacher"]
        return f"sending its text to {teacher['model']} at {teacher['endpoint']}"
    return AWAITS.get(cycle.state)


def _manifest(connection: Connection, cycle: Cycle) -> ManifestSummary | None:
    if cycle.manifest_digest is None:
        return None
    manifest = cycles.find_manifest(connection, cycle.cycle_id)
    if manifest is None:
        return None
    by_violation: dict[str, int] = {}
    for member in manifest.members:
        by_violation[member.violation_type] = by_violation.get(member.violation_type, 0) + 1
    return ManifestSummary(
        members=len(manifest.members),
        held_out=len(manifest.held_out),
        units=len({member.unit for member in manifest.members}),
        public_benign=manifest.public_benign,
        cohort=manifest.cohort,
        excluded=manifest.excluded,
        by_violation=dict(sorted(by_violation.items(), key=lambda item: -item[1])),
        digest=cycle.manifest_digest,
    )


def _sample(connection: Connection, cycle_id: str) -> list[Revised]:
    rows = revisions.sample(connection, cycle_id, SAMPLE)
    stored = examples.get(connection, [row.example_id for row in rows])
    return [
        Revised(
            example_id=row.example_id,
            violation_type=stored[row.example_id].violation_type,
            prompt=stored[row.example_id].prompt,
            response=stored[row.example_id].response,
            target=row.target,
            origin=row.origin,
            rounds=row.rounds,
            compliant=row.compliant,
            score=row.score,
        )
        for row in rows
        if row.example_id in stored
    ]


def _verdict(body: dict[str, Any], at: str) -> Verdict:
    context = body.get("context", {})
    decision = context.get("decision", {})
    reasons = [reason for reason in decision.get("reasons", []) if isinstance(reason, dict)]
    allow = decision.get("allow") is True
    return Verdict(
        at=at,
        action=str(decision.get("action", "unknown")),
        allow=allow,
        needs_person=bool(reasons) and all(str(one.get("code")).startswith(APPROVAL_PREFIX) for one in reasons),
        lane=str(decision.get("lane", "unknown")),
        engine=str(decision.get("engine", "unknown")),
        reasons=[str(reason.get("message", "")) for reason in reasons],
        facts=context.get("facts", {}),
    )


def _report(console: Console, cycle_id: str) -> Path | None:
    """The report beside the cycle's evaluation, if there is one; the id is one that the store knows."""
    path = console.settings.training.artifacts / cycle_id / REPORT
    inside = path.resolve().parent.parent == console.settings.training.artifacts.resolve()
    return path if inside and path.is_file() else None
