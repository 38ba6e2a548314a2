"""A worker's web without its worker, for tests: a store with two data domains, callers of every kind, real requests.

Plain functions; `conftest.py` puts this folder on the path, so a test says `from web_rig import Rig`.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from app import wiring
from app.roles import Role
from app.settings import Settings, load_settings
from app.store import access, cycles, examples, outbox, progress, registry, revisions
from app.store import tables as schema
from app.store.access import UserRole
from app.store.database import Database
from app.web.api import create_web
from app.web.guard import FORM_KEY
from app.web.sessions import VISIT_COOKIE, Signer
from app.workers import WorkerState
from models.cycle import Cycle, CycleState, Manifest, ManifestMember, TrainingPlan, TriggerType
from models.event import Classification, Identity
from models.example import Example, Lineage

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
SERVICE_TOKEN = "a-token-of-services-for-the-tests"
PLAN = TrainingPlan(
    base_model="SmolLM2-135M-Instruct", lora_rank=16, lora_alpha=32, lora_dropout=0.1, target_modules=("q_proj",),
    epochs=10, sample_rate=0.25, steps=40, learning_rate=5e-3, max_grad_norm=1.0, epsilon_target=4.0, delta=1e-5,
)  # fmt: skip
TO_TRAINING = (
    CycleState.PREPARING, CycleState.REVISING, CycleState.AWAITING_APPROVAL, CycleState.APPROVED, CycleState.TRAINING,
)  # fmt: skip


def figures(candidate: float = 0.97) -> dict[str, Any]:
    """An evaluation's figures, as the job writes them."""
    adherence = {"base": 0.2, "candidate": candidate, "n": 120,
                 "interval": {"base": [0.14, 0.28], "candidate": [candidate - 0.05, candidate + 0.02]}}  # fmt: skip
    refusal = {"base": 0.03, "candidate": 0.06, "n": 110, "interval": {"base": [0.01, 0.08], "candidate": [0.03, 0.12]}}
    return {
        "adherence": adherence,
        "over_refusal": refusal,
        "held_out_loss": {"base": 1.9, "candidate": 1.8, "ratio": 0.947, "n": 64},
        "second_evaluator": {"name": "phrases of refusal", "adherence": adherence, "over_refusal": refusal},
        "reloaded_from_disk": True,
    }


def statement(epsilon: float = 3.97) -> dict[str, Any]:
    """A privacy statement."""
    return {"epsilon": epsilon, "delta": 1e-5, "budget": 8.0, "unit": "subject", "steps": 40, "non_private": False}


@cache
def _migrated() -> Path:
    """An empty store, made once: copying a file is quicker than migrating each."""
    path = Path(tempfile.mkdtemp(prefix="flywheel-web-")) / "empty.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    atexit.register(shutil.rmtree, path.parent, True)
    return path


class Rig:
    """One worker's web over a store in `folder`.

    Args:
        folder: holds the store and the keys.
        role: of the worker.
        closed: whether callers are asked who they are.
        more: further settings, as environment variables.
    """

    def __init__(
        self,
        folder: Path,
        role: Role = Role.CURATE,
        *,
        closed: bool = True,
        database_url: str | None = None,
        more: dict[str, str] | None = None,
    ) -> None:
        given = {
            "FLYWHEEL_DATA_DIR": str(folder),
            "FLYWHEEL_DATABASE__URL": database_url or f"sqlite:///{folder / 'console.db'}",
            "FLYWHEEL_TRAINING__ARTIFACTS": str(folder / "models"),
            "FLYWHEEL_AUDIT_ENGINE__URL": "http://127.0.0.1:1",
            "FLYWHEEL_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "FLYWHEEL_REDIS__URL": "redis://127.0.0.1:1/0",
        }
        if closed:
            given |= {"FLYWHEEL_WEB__ACCESS": "tokens", "FLYWHEEL_WEB__TOKEN": SERVICE_TOKEN}
        self.settings: Settings = load_settings(given | (more or {}))
        if database_url is None:
            shutil.copy(_migrated(), folder / "console.db")
        self.state = WorkerState(self.settings, role)
        self.app: FastAPI = create_web(self.settings, role, self.state)
        self.signer = Signer(wiring.session_key(self.settings), self.settings.web.session_hours)

    @property
    def database(self) -> Database:
        return self.state.database

    @asynccontextmanager
    async def client(self, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        """Requests straight into the application; redirects are not followed."""
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
            yield http

    def token(self, person: str, role: UserRole, *domains: str, days: float = 30.0, known: bool = True) -> str:
        """A new token; `known`: the audit engine has it already."""
        with self.database.write() as connection:
            text, _ = access.issue(
                connection, person=person, role=role, domains=domains or ["*"], days=days, changed_by="tests"
            )
        if known:
            self.audited()
        return text

    def audited(self) -> None:
        """As if the relay had delivered all audit entries and records."""
        with self.database.write() as connection:
            waiting = outbox.pending(connection, 10_000)
            outbox.mark_delivered(connection, [item.seq for item in waiting])

    def entries(self, event_type: str) -> list[dict[str, Any]]:
        """Audit entries of a type, in the order in which they were queued."""
        table = schema.outbox
        query = sa.select(table.c.payload).where(table.c.channel == outbox.AUDIT, table.c.destination == event_type)
        with self.database.read() as connection:
            return [row.payload for row in connection.execute(query.order_by(table.c.seq))]

    def notices(self) -> list[dict[str, Any]]:
        """Notices that wait for the webhook."""
        with self.database.read() as connection:
            return [item.payload for item, _ in outbox.pending_notices(connection, 1000)]

    def form(self, person: str | None, token: str | None, **fields: str) -> dict[str, Any]:
        """Keyword arguments that post a form as a page would: visit cookie and form key of this caller."""
        key = "open" if token is None else access.token_name(token)
        visit = f"visit-of-{person}"
        fields[FORM_KEY] = self.signer.form_key(visit, key or "service")
        return {"data": fields, "cookies": {VISIT_COOKIE: visit}}

    def cycle(
        self,
        model_id: str,
        domain: str,
        state: CycleState = CycleState.AWAITING_APPROVAL,
        requested_by: str = "curation",
    ) -> Cycle:
        """A cycle that has come to a state, with a plan where that has one."""
        with self.database.write() as connection:
            return walk(connection, model_id, domain, state, requested_by)

    def example(self, event_id: str, domain: str, *, prompt: str = "How?", response: str = "So.", **more: Any) -> str:
        """An example that waits."""
        one = make_example(event_id, domain, prompt=prompt, response=response, **more)
        with self.database.write() as connection:
            examples.insert(connection, [one])
        return one.example_id


def make_example(event_id: str, domain: str, **more: Any) -> Example:
    """An example of an event."""
    fields: dict[str, Any] = {
        "model_id": "assistant", "subject_token": None, "workload_id": None, "violation_type": "illegal_acts",
        "compliance_score": 0.4, "prompt": "How?", "response": "So.", "priority": 2,
        "created_at": "2026-03-02T09:16:00.000000Z",
    }  # fmt: skip
    return Example(
        example_id=f"ex-{event_id}",
        identity=Identity(service="tests", id=event_id, fingerprint="0" * 32),
        event_id=event_id,
        classification=Classification.CONSTITUTIONAL_VIOLATION,
        lineage=Lineage(topic="constitutional-violations", partition=0, offset=1),
        domain=domain,
        **fields | more,
    )


def walk(
    connection: sa.Connection, model_id: str, domain: str, state: CycleState, requested_by: str = "curation"
) -> Cycle:
    """Open a cycle and move it on as the stages do, up to a state."""
    cycle = cycles.open_cycle(
        connection, model_id=model_id, domain=domain, trigger_type=TriggerType.COUNT, requested_by=requested_by,
        facts={"waiting_examples": 130},
    )  # fmt: skip
    assert cycle is not None
    for following in path_to(state):
        changes: dict[str, Any] = {}
        if following is CycleState.REVISING:
            changes = {"manifest_digest": "ab" * 32}
            member = ManifestMember(example_id="ex-1", digest="cd" * 32, violation_type="illegal_acts", unit="sub_1")
            manifest = Manifest(
                cycle_id=cycle.cycle_id, domain=domain, members=(member,), held_out=(), public_benign=64,
                excluded={"residual_pii": 1}, constitution_digest="ef" * 32,
            )  # fmt: skip
            cycles.save_manifest(connection, manifest, "ab" * 32)
        if following in {CycleState.AWAITING_APPROVAL, CycleState.APPROVED} and cycle.plan is None:
            changes = {"plan": PLAN, "plan_digest": "12" * 32}
        if following is CycleState.EVALUATING:
            trained(connection, cycle)
            changes = {"facts": cycle.facts | {"privacy": statement()}}
        if following in {CycleState.AWAITING_PROMOTION, CycleState.PROMOTED}:
            changes = {"facts": cycle.facts | {"evaluation": figures()}}
        if following is CycleState.PROMOTED:
            registry.set_evaluation(connection, cycle.cycle_id, figures())
            registry.deploy(connection, model_id, cycle.cycle_id, f"cycle {cycle.cycle_id}")
        cycle = cycles.transition(connection, cycle, following, {"by": "tests"}, **changes)
    return cycle


def path_to(state: CycleState) -> Iterable[CycleState]:
    """The states from `proposed` on to one."""
    whole = (*TO_TRAINING, CycleState.EVALUATING, CycleState.PROMOTED)
    if state is CycleState.PROPOSED:
        return ()
    if state is CycleState.AWAITING_PROMOTION:
        return (*whole[:-1], state)
    return whole[: whole.index(state) + 1]


def trained(connection: sa.Connection, cycle: Cycle) -> None:
    """What training leaves: a version, progress."""
    registry.add_version(
        connection,
        {
            "version_id": cycle.cycle_id, "model_id": cycle.model_id, "cycle_id": cycle.cycle_id,
            "base_model": PLAN.base_model, "path": "models/x", "digest": "34" * 32, "statement": statement(),
        },
    )  # fmt: skip
    progress.save(connection, cycle.cycle_id, "train", 40, 40, {"epsilon": 3.97})


def revised(connection: sa.Connection, cycle_id: str, example_id: str, target: str) -> None:
    """What critique and revision leave of an example."""
    row = {"example_id": example_id, "rounds": 2, "origin": "revision", "compliant": True, "score": 0.98,
           "target": target, "target_digest": "56" * 32, "history": []}  # fmt: skip
    revisions.save(connection, cycle_id, [row])


def routes(app: FastAPI | APIRouter) -> Iterator[tuple[str, str]]:
    """(method, path) of everything an application serves, but for the files under `/static`."""
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            assert not route.include_context.prefix, "say its prefix in the paths that are yielded"
            yield from routes(inner)
            continue
        if isinstance(route, Mount):
            assert route.path == "/static", f"{route.path} is mounted, and nothing here asks who may see it"
            continue
        assert isinstance(route, APIRoute), f"{route} is no route that this test knows how to ask"
        for method in sorted(route.methods - {"HEAD"}):
            yield method, route.path


def form_key_in(page: str) -> str:
    """The form key that a page carries."""
    found = re.search(rf'name="{FORM_KEY}" value="([0-9a-f]+)"', page)
    assert found is not None, "the page has no form"
    return found[1]
