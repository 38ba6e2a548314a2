"""The workers' web as the fuzzer serves it: real applications over one store, their neighbours in memory or real."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from fastapi import FastAPI
from fuzz_ingest_checks import MemoryProducer
from loopback import serving
from web_rig import HOSTILE, SERVICE_TOKEN, Rig, revised, routes

from app.gate import open_gate
from app.roles import Role
from app.store import access
from app.store.access import UserRole
from app.wiring import audit_config
from fuzz.web_cases import Names
from models.audit import AuditEntry
from models.cycle import CycleState
from policies.audit.service import create_audit_app
from policies.constitution import load_constitution

DOMAINS = ("medical", "legal")
STATES = (CycleState.AWAITING_APPROVAL, CycleState.PROMOTED, CycleState.AWAITING_PROMOTION, CycleState.REVISING)
SESSION_KEY = "planted-key-of-the-sessions-of-browsers"


class Reviews:
    """Stands for Kafka where reviews go: keeps them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    async def send_and_wait(self, topic: str, value: bytes, *, key: bytes, headers: Any) -> None:
        """Take one."""
        self.events.append(orjson.loads(value))

    async def stop(self) -> None:
        """Nothing to end."""


class Log:
    """Stands for the audit engine where the gate's decisions go."""

    async def log(self, entry: AuditEntry) -> None:
        """Take one."""


class Workers:
    """The router's and the trainer's web: between them they have every route."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        more = {f"FLYWHEEL_WEB__{name}_PER_MINUTE": "1000000000"
                for name in ("READS", "WRITES", "FAILURES", "FEEDBACK")}  # fmt: skip
        more |= {"FLYWHEEL_WEB__SESSION_KEY": SESSION_KEY, "FLYWHEEL_AUDIT_ENGINE__TOKEN": "planted-token-of-audit"}
        more |= {"FLYWHEEL_AUDIT_ENGINE__DATABASE_URL": f"sqlite:///{folder / 'audit.db'}"}
        first = Rig(folder, Role.ROUTE, more=more)
        audit_url = stack.enter_context(serving(create_audit_app(audit_config(first.settings))))
        more |= {"FLYWHEEL_AUDIT_ENGINE__URL": audit_url}
        url = first.settings.database.url
        self.rigs = {role.value: Rig(folder, role, database_url=url, more=more) for role in (Role.ROUTE, Role.TRAIN)}
        self.rig = self.rigs["train"]
        self.reviews, self.records = Reviews(), MemoryProducer()
        self.names = Names()
        self.tokens, self.keys = self._callers()
        self.more_things()
        self.routes = sorted(
            (name, method, path) for name, rig in self.rigs.items() for method, path in routes(rig.app)
        )
        self.ports = {}
        for name, rig in self.rigs.items():
            self._wire(rig)
            rig.app.router.lifespan_context = self._lifespan(rig)
            self.ports[name] = int(urlsplit(stack.enter_context(serving(rig.app))).port or 0)
            stack.callback(rig.app.state.ticker.close)
        path = urlsplit(url).path.removeprefix("/")
        self.connection = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))

    def _wire(self, rig: Rig) -> None:
        feedback: Any = rig.state.snapshots["feedback"]
        feedback.__self__._producer = self.reviews
        if "ingest" in rig.state.snapshots:
            ingest: Any = rig.state.snapshots["ingest"]
            ingest.__self__._producer = self.records

    def _lifespan(self, rig: Rig) -> Any:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            # No reporter: it writes to the store every other second, and nothing but requests may here.
            if rig.state.role is not Role.TRAIN:
                yield
                return
            async with open_gate(rig.settings, rig.database, load_constitution(), Log()) as gate:
                rig.state.gate = gate
                yield

        return lifespan

    def _callers(self) -> tuple[dict[str, str], dict[str, str]]:
        rig = self.rig
        good = rig.token("ada", UserRole.OPERATOR)
        taken = rig.token("tom", UserRole.OPERATOR)
        tokens = {
            "operator": good,
            "reviewer": rig.token("bob", UserRole.REVIEWER),
            "viewer": rig.token("vic", UserRole.VIEWER),
            "medical": rig.token("mia", UserRole.OPERATOR, "medical"),
            "expired": rig.token("eve", UserRole.OPERATOR, days=1e-9),
            "service": SERVICE_TOKEN,
            "forged": good[:-4] + ("aaaa" if good[-4:] != "aaaa" else "bbbb"),
            "taken": taken,
            "secret": "hunter2",
            "basic": "Basic YWRhOmFkYQ==",
        }
        with rig.database.write() as connection:
            access.take_back(connection, access.token_name(taken) or "", changed_by="tests")
        names = {caller: access.token_name(token) or "" for caller, token in tokens.items() if caller != "forged"}
        return tokens, names

    def session(self, caller: str) -> str:
        """The session cookie of a caller; one that no server of ours made where they have none."""
        name = self.keys.get(caller)
        return self.rig.signer.new_session(name) if name else "eyJ.0123456789abcdef"

    def more_things(self) -> None:
        """Cycles in every state, with hostile text wherever text may stand; the newest are asked about."""
        rig, made = self.rig, len(self.names.cycles)
        for number in range(8):
            domain, state = DOMAINS[number % 2], STATES[number % 4]
            model = f"m{made}/{number} {HOSTILE[:20]}"
            cycle = rig.cycle(model, domain, state, requested_by=f"eve {HOSTILE}"[:90])
            event = f"e-{made}-{number}"
            example = rig.example(event, domain, prompt=f"{HOSTILE} how?", response=f"so {HOSTILE}", model_id=model)
            if state is not CycleState.REVISING:
                with rig.database.write() as connection:
                    revised(connection, cycle.cycle_id, example, f"no {HOSTILE}")
            self.names.cycles[number:number] = [cycle.cycle_id]
            self.names.models[number:number] = [model]
            self.names.versions[number:number] = [cycle.cycle_id]
            self.names.events[number:number] = [event]
        report = rig.settings.training.artifacts / self.names.cycles[0] / "report.html"
        report.parent.mkdir(parents=True)
        report.write_text("<!doctype html><main>a report</main>")
        rig.audited()

    def commits(self) -> int:
        """Changes whenever another connection has changed the store."""
        (version,) = self.connection.execute("PRAGMA data_version").fetchone()
        return int(version)
