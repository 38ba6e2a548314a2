"""`/`: the pipeline as it runs, adherence, privacy, cycles."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import Connection

from app import __version__
from app.store import adherence, budget, cycles, examples, overview, reports, switches
from app.store.database import utc_now
from app.store.tables import cycles as cycles_table
from app.store.tables import deployments, model_versions
from app.web.charts import HEIGHT, WIDTH, adherence_line
from app.web.console.parts import Console
from app.web.identity import Identity, Right
from models.cycle import TERMINAL_STATES, Cycle
from models.event import Classification

OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
SPANS = {"3h": (timedelta(hours=3), 1), "24h": (timedelta(hours=24), 10), "7d": (timedelta(days=7), 60)}
MOST_CYCLES = 20
MOST_LINES = 12

Span = Literal["3h", "24h", "7d"]


class Record(BaseModel):
    """What a page shows and the API answers."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Worker(Record):
    """One worker, as it last told of itself. `lag`: offsets behind, over all partitions."""

    worker: str
    role: str
    silent: bool
    age_s: float
    lag: int | None


class Flow(Record):
    """Routing over all routers that report: counts since each began, and records a second over the last ten."""

    records: dict[str, int]
    rates: dict[str, float]
    by_classification: dict[str, int]
    by_reason: dict[str, int]


class AdherenceLine(Record):
    """A model's adherence in a domain: the estimate now, and (minute, share) before."""

    model_id: str
    domain: str
    mean: float
    evaluations: int
    points: list[tuple[str, float]]


class Waiting(Record):
    """Examples that wait for a cycle; `units`: of privacy, a subject's examples being one."""

    model_id: str
    domain: str
    examples: int
    units: int


class CycleLine(Record):
    """One cycle, briefly."""

    cycle_id: str
    model_id: str
    domain: str
    state: str
    trigger_type: str
    requested_by: str
    updated_at: str
    reasons: list[str]


class Overview(Record):
    """Everything on the page, limited to the caller's domains where it belongs to one."""

    at: str
    role: str
    version: str
    flow: Flow
    lag: dict[str, int]
    workers: list[Worker]
    adherence: list[AdherenceLine]
    threshold: float
    budgets: list[budget.DomainBudget]
    budget: float
    waiting: list[Waiting]
    cycles: list[CycleLine]
    cycles_by_state: dict[str, int]
    champions: int
    """Models that a trained version serves, not their base."""
    outbox: int | None
    outbox_refused: int | None
    halted: str | None


def read_overview(console: Console, identity: Identity, span: Span, connection: Connection) -> Overview:
    """What the store and the workers' reports say."""
    told = {one.worker: one for one in reports.read(connection)}
    mine = console.reporter
    told[mine.worker] = reports.WorkerReport(mine.worker, console.role.value, mine.report(), 0.0)
    counts = overview.counts(connection) if identity.sees_all else None
    return Overview(
        at=utc_now(),
        role=console.role.value,
        version=__version__,
        flow=summed_flow([one for one in told.values() if not one.is_silent]),
        lag=summed_lag([one for one in told.values() if not one.is_silent]),
        workers=[_worker(one) for one in sorted(told.values(), key=lambda one: (one.role, one.worker))],
        adherence=_adherence(connection, identity, span),
        threshold=console.settings.constitution.compliance_threshold,
        budgets=[one for one in budget.by_domain(connection) if identity.sees(one.domain)],
        budget=console.settings.privacy.epsilon,
        waiting=[
            Waiting(model_id=one.model_id, domain=one.domain, examples=one.examples, units=one.units)
            for one in examples.waiting_units(connection)
            if identity.sees(one.domain)
        ],
        cycles=_cycles(connection, identity),
        cycles_by_state=_by_state(connection, identity),
        champions=_champions(connection, identity),
        outbox=None if counts is None else counts["outbox"],
        outbox_refused=None if counts is None else counts["outbox_refused"],
        halted=halted(connection),
    )


def halted(connection: Connection) -> str | None:
    """Why all cycles stand still; None where they run."""
    stopped = switches.halted(connection)
    if stopped is None:
        return None
    if stopped.value is None:
        return f"All cycles stand still until the audit engine knows that {stopped.changed_by} lets them go on."
    why = f": {stopped.comment}" if stopped.comment else "."
    return f"All cycles stand still since {stopped.changed_at[:19].replace('T', ' ')} by {stopped.changed_by}{why}"


def cycle_line(cycle: Cycle) -> CycleLine:
    """A cycle, briefly."""
    return CycleLine(
        cycle_id=cycle.cycle_id,
        model_id=cycle.model_id,
        domain=cycle.domain,
        state=cycle.state.value,
        trigger_type=cycle.trigger_type.value,
        requested_by=cycle.requested_by,
        updated_at=cycle.updated_at,
        reasons=[reason["message"] for reason in cycle.reasons],
    )


def add(app: FastAPI, console: Console) -> None:
    """Add the page, its JSON, and the list of cycles."""
    may = Depends(console.guard.needs(Right.VIEW))

    async def view(identity: Identity, span: Span) -> Overview:
        return await console.read(lambda connection: read_overview(console, identity, span, connection))

    @app.get("/", response_class=HTMLResponse)
    async def page(request: Request, identity: Identity = may, span: Span = "3h") -> HTMLResponse:
        """The overview as a page."""
        try:
            shown = await view(identity, span)
        except HTTPException as away:
            return await console.page(request, identity, "overview.html", {"o": None, "problem": away.detail})
        lines = {(one.model_id, one.domain): adherence_line(one.points, shown.threshold) for one in shown.adherence}
        context = {
            "o": shown,
            "lines": lines,
            "span": span,
            "spans": list(SPANS),
            "box": (WIDTH, HEIGHT),
            "classifications": [kind.value for kind in Classification],
            "outcomes": OUTCOMES,
        }
        return await console.page(request, identity, "overview.html", context)

    @app.get("/api/v1/overview", tags=["pages"])
    async def overview_json(identity: Identity = may, span: Span = "3h") -> Overview:
        """What the overview shows."""
        return await view(identity, span)

    @app.get("/api/v1/cycles", tags=["cycles"])
    async def cycles_json(
        identity: Identity = may, before: str | None = None, open_only: bool = False, limit: int = 100
    ) -> list[CycleLine]:
        """Cycles, newest first; `before`: only those opened before this time (RFC 3339)."""
        at_most = max(1, min(limit, 1000))
        return await console.read(lambda c: _cycles(c, identity, before=before, open_only=open_only, limit=at_most))


def _cycles(
    connection: Connection,
    identity: Identity,
    *,
    before: str | None = None,
    open_only: bool = False,
    limit: int = MOST_CYCLES,
) -> list[CycleLine]:
    query = sa.select(cycles_table).order_by(cycles_table.c.created_at.desc()).limit(limit)
    if identity.domains is not None:
        query = query.where(cycles_table.c.domain.in_(sorted(identity.domains)))
    if before is not None:
        query = query.where(cycles_table.c.created_at < before)
    if open_only:
        query = query.where(cycles_table.c.state.not_in([state.value for state in TERMINAL_STATES]))
    return [cycle_line(cycle) for cycle in cycles.matching(connection, query)]


def _by_state(connection: Connection, identity: Identity) -> dict[str, int]:
    query = sa.select(cycles_table.c.state, sa.func.count()).group_by(cycles_table.c.state)
    if identity.domains is not None:
        query = query.where(cycles_table.c.domain.in_(sorted(identity.domains)))
    return {state: int(count) for state, count in connection.execute(query)}


def _champions(connection: Connection, identity: Identity) -> int:
    newest = sa.select(sa.func.max(deployments.c.seq)).group_by(deployments.c.model_id)
    serving = sa.select(sa.func.count()).select_from(
        deployments.join(model_versions, model_versions.c.version_id == deployments.c.version_id).join(
            cycles_table, cycles_table.c.cycle_id == model_versions.c.cycle_id
        )
    )
    query = serving.where(deployments.c.seq.in_(newest))
    if identity.domains is not None:
        query = query.where(cycles_table.c.domain.in_(sorted(identity.domains)))
    return int(connection.execute(query).scalar_one())


def _adherence(connection: Connection, identity: Identity, span: Span) -> list[AdherenceLine]:
    back, every = SPANS[span]
    since = (datetime.now(UTC) - back).strftime("%Y-%m-%dT%H:%M")
    before = adherence.over_time(connection, since, every)
    found = [one for one in adherence.read(connection).values() if identity.sees(one.domain)]
    found.sort(key=lambda one: (one.mean, one.model_id, one.domain))
    return [
        AdherenceLine(
            model_id=one.model_id,
            domain=one.domain,
            mean=one.mean,
            evaluations=one.evaluations,
            points=before.get((one.model_id, one.domain), []),
        )
        for one in found[:MOST_LINES]
    ]


def summed_flow(told: list[reports.WorkerReport]) -> Flow:
    """Routing over all routers among these."""
    routing = [one.report["routing"] for one in told if one.report.get("routing")]
    return Flow(
        records={name: sum(one[name] for one in routing) for name in ("in", *OUTCOMES)},
        rates={name: sum(one["rates"].get(name, 0.0) for one in routing) for name in ("in", *OUTCOMES)},
        by_classification=_summed([one["by_classification"] for one in routing]),
        by_reason=_summed([one["by_reason"] for one in routing]),
    )


def summed_lag(told: list[reports.WorkerReport]) -> dict[str, int]:
    """By role: how far all its workers are behind, together."""
    found: Counter[str] = Counter()
    for one in told:
        if "lag" in one.report:
            found[one.role] += sum(one.report["lag"].values())
    return dict(found)


def _worker(one: reports.WorkerReport) -> Worker:
    lag = one.report.get("lag")
    behind = None if lag is None else sum(lag.values())
    return Worker(worker=one.worker, role=one.role, silent=one.is_silent, age_s=round(one.age_s, 1), lag=behind)


def _summed(counts: list[dict[str, Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
