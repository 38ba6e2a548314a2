"""The policy gate as a worker opens it: an engine over the bundle in force, with its cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import sqlalchemy as sa

from app.keys import key
from app.redis import REDIS_ERRORS, make_redis
from app.settings import Settings
from app.store import Database, permissions, usage
from app.store.database import DatabaseUnavailable
from app.telemetry.latency import ClientLatency
from app.wiring import bundle_source, secret
from models.audit import AuditEntry
from models.decision import GateDecision
from policies.clients.audit_client import AuditClientError
from policies.constitution import Constitution
from policies.gate import BundleSource, OpaConfig, OpaEngine, PolicyBundle, PolicyEngine, RegopyEngine
from policies.gate.cache import CachedEngine, Record, Unrecorded
from policies.gate.live import BundleUnavailable, LiveEngine
from policies.gate.record import decision_entry

Tables = Mapping[str, Any]

MAX_AGE_S = 1.0
"""How old the data of a decision on inference may be. All other decisions read it anew."""


class Audit(Protocol):
    """Takes an entry and returns once it is durable, or raises `AuditClientError`."""

    async def log(self, entry: AuditEntry) -> Any: ...


class GateBundle:
    """The bundle in force (`policies.gate.live.Present`): policies from files, data from files or from SQL."""

    def __init__(self, base: Callable[[], PolicyBundle], tables: Callable[[], Tables] | None) -> None:
        """`base` reads the files and `tables` the store, both in a thread; without it the files are all there is."""
        self._base = base
        self._tables = tables
        self._made_of: tuple[PolicyBundle, Tables | None] | None = None
        self._bundle: PolicyBundle | None = None
        self._read_at = 0.0
        self._reading = asyncio.Lock()

    async def __call__(self, *, fresh: bool) -> PolicyBundle:
        """See `Present`. The same object as long as nothing changed."""
        if not fresh and self._bundle is not None and time.monotonic() - self._read_at < MAX_AGE_S:
            return self._bundle
        asked = time.monotonic()
        async with self._reading:
            # Whoever held the lock may have read after this question was asked: that is fresh enough.
            if self._bundle is None or self._read_at < asked:
                began = time.monotonic()
                bundle = await asyncio.to_thread(self._read)
                self._bundle, self._read_at = bundle, began
            return self._bundle

    def _read(self) -> PolicyBundle:
        base = self._base()
        try:
            tables = None if self._tables is None else self._tables()
        except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
            message = f"The gate's data cannot be read from the store ({type(error).__name__})."
            raise BundleUnavailable(message) from error
        if self._bundle is None or self._made_of is None or (base, tables) != self._made_of:
            self._made_of = (base, tables)
            return base if tables is None else base.with_tables(tables)
        return self._bundle


def read_tables(database: Database) -> Tables:
    """The gate's data as the store has it: who may use what, what was used this month, what the machines report.

    Where no machine reports, the amounts are null: nothing is available.
    """
    with database.read() as connection:
        granted = permissions.audited(connection).values
        used = usage.hours_this_month(connection)
        compute = usage.available(connection)
    resources = {
        "available_gpus": None if compute is None else compute.available_gpus,
        "available_memory_gb": None if compute is None else compute.available_memory_gb,
    }
    return {"user_permissions": granted, "gpu_hours_used": used, "resources": resources}


class Gate:
    """The worker's gate: decides, tells which bundle is in force, and what its cache did."""

    def __init__(self, cached: CachedEngine, bundle: GateBundle) -> None:
        self._cached = cached
        self._bundle = bundle

    @property
    def name(self) -> str:
        return self._cached.name

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        """See `PolicyEngine.decide`."""
        return await self._cached.decide(action, facts)

    async def present(self, *, fresh: bool = True) -> PolicyBundle:
        """The bundle in force; raises `policies.gate.live.BundleUnavailable`."""
        return await self._bundle(fresh=fresh)

    async def bounds(self) -> Mapping[str, Any]:
        """The bounds that it decides by just now; raises `policies.gate.live.BundleUnavailable`."""
        found: Mapping[str, Any] = (await self.present()).data["bounds"]
        return found

    def snapshot(self) -> dict[str, int]:
        """What the decision cache did since the worker started."""
        return self._cached.snapshot()

    async def aclose(self) -> None:
        """Close the engine."""
        await self._cached.aclose()


@asynccontextmanager
async def open_gate(
    settings: Settings,
    database: Database,
    constitution: Constitution,
    audit: Audit,
    latency: ClientLatency | None = None,
    policies: Callable[[], BundleSource] | None = None,
) -> AsyncIterator[Gate]:
    """The gate, opened in the running loop. Decisions about inference it records itself; `audit` stays the caller's.

    `policies` gives what was loaded and tested already, called in a thread.

    Raises `policies.gate.BundleError` where the policies do not load or fail their tests, and `BundleUnavailable`
    where their data cannot be read.
    """
    source = await asyncio.to_thread(policies or partial(bundle_source, settings, constitution))
    tables = (lambda: read_tables(database)) if settings.gate.data == "sql" else None
    bundle = GateBundle(source.refresh, tables)
    engine: PolicyEngine
    if settings.gate.opa_url:
        token = secret(settings.gate.opa_token)
        engine = OpaEngine(OpaConfig(settings.gate.opa_url, token, timeout_seconds=settings.gate.timeout_s))
    else:
        engine = await asyncio.to_thread(RegopyEngine, await bundle(fresh=True))
    store = make_redis(settings, latency=latency)
    mac_key = key(settings.gate.cache_key, settings.data_dir, "gate-cache").encode()
    cached = CachedEngine(
        LiveEngine(engine, bundle),
        store,
        mac_key,
        _recorder(audit, settings.constitution.hash),
        ttl_s=settings.gate.cache_s,
        unavailable=REDIS_ERRORS,
    )
    try:
        yield Gate(cached, bundle)
    finally:
        await cached.aclose()
        await store.aclose()


def _recorder(audit: Audit, constitutional_hash: str) -> Record:
    async def record(facts: Mapping[str, Any], decision: GateDecision) -> None:
        entry = decision_entry(facts, decision, constitutional_hash)
        try:
            await audit.log(entry)
        except AuditClientError as error:
            raise Unrecorded(f"The decision could not be recorded, so it has no effect: {error}.") from error

    return record
