"""The gate's real policies with watchers and an audit log that tests hold in their hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from agents.training.context import DecisionContext
from agents.training.facts import Watchers
from app.settings import Settings
from app.store import Database
from app.wiring import cycle_config, policy_bundle
from models.audit import AuditEntry
from models.decision import GateDecision
from policies.clients.audit_client import AuditUnavailable
from policies.constitution import load_constitution
from policies.gate import PolicyBundle, RegopyEngine


@lru_cache(maxsize=1)
def bundle() -> PolicyBundle:
    """The project's policies, tested, with the default settings' values."""
    return policy_bundle(Settings(), load_constitution(None))


@lru_cache(maxsize=1)
def engine() -> RegopyEngine:
    return RegopyEngine(bundle())


@dataclass
class Watch:
    """Who watches: what the audit engine was given, and who is away."""

    entries: list[AuditEntry] = field(default_factory=list)
    policy_engine: bool = True
    audit_engine: bool = True
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    audit_fails: bool = False

    async def log(self, entry: AuditEntry) -> None:
        if self.audit_fails:
            raise AuditUnavailable("the audit engine did not answer")
        self.entries.append(entry)

    async def probe(self) -> Watchers:
        return Watchers(self.policy_engine, self.audit_engine)

    async def decide(self, action: str, facts: dict[str, Any]) -> GateDecision:
        self.asked.append((action, facts))
        return await engine().decide(action, facts)

    async def bounds(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = bundle().data["bounds"]
        return found

    def decisions(self) -> list[tuple[str, bool]]:
        """Action and outcome of each decision that the audit log has."""
        told = [entry.context["decision"] for entry in self.entries]
        return [(decision["action"], decision["allow"]) for decision in told]


def deciding(settings: Settings, database: Database, watch: Watch) -> DecisionContext:
    return DecisionContext(
        config=cycle_config(settings),
        database=database,
        gate=watch,
        audit=watch,
        probe=watch.probe,
        bounds=watch.bounds,
    )


def opener(watch: Watch) -> Any:
    """`app.deciding.decision_context` with this watch."""

    @asynccontextmanager
    async def open_context(
        settings: Settings, database: Database, policies: Any = None
    ) -> AsyncIterator[DecisionContext]:
        yield deciding(settings, database, watch)

    return open_context
