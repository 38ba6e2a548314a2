"""One step spent of a data domain's budget, as tests want it in the ledger."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from app.store import ledger
from app.store.leases import Lease, acquire
from models.cycle import Cycle
from models.privacy import LedgerEntry


def entry(cycle: Cycle, lease: Lease, **changes: Any) -> LedgerEntry:
    """One step of a cycle under a lease; `changes` are other columns."""
    values: dict[str, Any] = {
        "domain": cycle.domain,
        "cohort": 0,
        "cycle_id": cycle.cycle_id,
        "model_id": cycle.model_id,
        "noise_multiplier": 1.0,
        "sample_rate": 0.1,
        "steps": 1,
        "fence": lease.fence,
        "created_at": "2026-01-01T00:00:00.000000Z",
    }
    return LedgerEntry(**(values | changes))


def spend(connection: Connection, cycle: Cycle, **changes: Any) -> None:
    """Reserve one step for a cycle under its domain's lease; `changes` are other columns of the entry."""
    lease = acquire(connection, ledger.domain_lease(cycle.domain), "w", 60.0)
    assert lease is not None
    ledger.reserve(connection, entry(cycle, lease, **changes), lease)
