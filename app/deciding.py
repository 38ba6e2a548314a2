"""What a command or a page needs to have the gate decide, as a training worker has it: gate, audit engine, probes."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from agents.training.context import DecisionContext
from app import wiring
from app.gate import open_gate
from app.settings import Settings
from app.store import Database
from policies.constitution import load_constitution
from policies.gate import BundleSource


class KeptPolicies:
    """The gate's policies, loaded and tested when first asked for and kept: that takes two seconds of processor time.

    A changed folder is noticed all the same (`BundleSource.refresh`). Threads may share it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._source: BundleSource | None = None

    def __call__(self) -> BundleSource:
        """Raises what `app.wiring.bundle_source` and `load_constitution` raise, and tries again the next time."""
        with self._lock:
            if self._source is None:
                constitution = load_constitution(self._settings.constitution.path)
                self._source = wiring.bundle_source(self._settings, constitution)
            return self._source


@asynccontextmanager
async def decision_context(
    settings: Settings, database: Database, policies: Callable[[], BundleSource] | None = None
) -> AsyncIterator[DecisionContext]:
    """Opened in the running loop. `policies`: where they were tested already.

    Raises what `app.gate.open_gate` and `load_constitution` raise.
    """
    constitution = load_constitution(settings.constitution.path)
    probe = wiring.Probe(settings)
    audit = wiring.audit_client(settings)
    async with AsyncExitStack() as stack:
        for closing in (probe, audit):
            stack.push_async_callback(closing.aclose)
        gate = await stack.enter_async_context(open_gate(settings, database, constitution, audit, policies=policies))
        yield DecisionContext(
            config=wiring.cycle_config(settings),
            database=database,
            gate=gate,
            audit=audit,
            probe=probe,
            bounds=gate.bounds,
        )
