"""What a command needs to have the gate decide, as a training worker has it: gate, audit engine, probes, store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from agents.training.context import DecisionContext
from app import wiring
from app.gate import open_gate
from app.settings import Settings
from app.store import Database
from policies.constitution import load_constitution


@asynccontextmanager
async def decision_context(settings: Settings, database: Database) -> AsyncIterator[DecisionContext]:
    """Opened in the running loop. Raises what `app.gate.open_gate` and `load_constitution` raise."""
    constitution = load_constitution(settings.constitution.path)
    probe = wiring.Probe(settings)
    audit = wiring.audit_client(settings)
    async with AsyncExitStack() as stack:
        for closing in (probe, audit):
            stack.push_async_callback(closing.aclose)
        gate = await stack.enter_async_context(open_gate(settings, database, constitution, audit))
        yield DecisionContext(
            config=wiring.cycle_config(settings),
            database=database,
            gate=gate,
            audit=audit,
            probe=probe,
            bounds=gate.bounds,
        )
