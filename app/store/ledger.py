"""The privacy ledger: append-only, written before the step it pays for, and only under the domain's lease.

What is spent composes over the whole data domain (and cohort): every model, retry and rejected candidate. Epsilon is
computed from these rows by whoever has the accountant (`agents.training.ml.accounting`); nothing here knows formulas.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import cohorts, leases, outbox
from app.store.leases import FenceLost, Lease
from app.store.tables import ledger
from models.privacy import LedgerEntry


def domain_lease(domain: str) -> str:
    """The name of the lease that whoever spends a domain's budget holds."""
    return f"domain:{domain}"


def reserve(connection: Connection, entry: LedgerEntry, lease: Lease) -> None:
    """Reserve steps under the domain's lease.

    Writes nothing and raises `FenceLost` where the lease is no longer ours, `cohorts.CohortClosed` where the domain has
    a newer cohort.
    """
    if lease.name != domain_lease(entry.domain) or lease.fence != entry.fence:
        raise FenceLost(f"lease {lease.name} (fence {lease.fence}) does not pay for domain {entry.domain}")
    leases.require(connection, lease)
    cohorts.require(connection, entry.domain, entry.cohort)
    connection.execute(sa.insert(ledger).values(**entry.model_dump()))
    outbox.audit(connection, "privacy_ledger", entry.model_dump(mode="json"))


def phases(connection: Connection, domain: str, cohort: int = 0) -> list[tuple[float, float, int]]:
    """(noise multiplier, sample rate, steps) of a domain in the order spent, equal neighbours joined."""
    rows = connection.execute(
        sa.select(ledger.c.noise_multiplier, ledger.c.sample_rate, ledger.c.steps)
        .where(ledger.c.domain == domain, ledger.c.cohort == cohort)
        .order_by(ledger.c.seq),
    )
    joined: list[tuple[float, float, int]] = []
    for noise, rate, steps in rows:
        if joined and joined[-1][:2] == (noise, rate):
            joined[-1] = (noise, rate, joined[-1][2] + steps)
        else:
            joined.append((noise, rate, steps))
    return joined


def trained_cycles(connection: Connection, domain: str, cohort: int = 0) -> list[str]:
    """Cycles that have spent from a domain's budget, in order of their first step."""
    rows = connection.execute(
        sa.select(ledger.c.cycle_id, sa.func.min(ledger.c.seq))
        .where(ledger.c.domain == domain, ledger.c.cohort == cohort)
        .group_by(ledger.c.cycle_id)
        .order_by(sa.func.min(ledger.c.seq)),
    )
    return [row[0] for row in rows]


def steps_of(connection: Connection, cycle_id: str) -> int:
    """Steps that a cycle has reserved so far."""
    total = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(ledger.c.steps), 0)).where(ledger.c.cycle_id == cycle_id),
    ).scalar_one()
    return int(total)


def spenders(connection: Connection) -> list[tuple[str, str, str]]:
    """(domain, model, cycle) of everything in the ledger, for the metric of the remaining budget."""
    rows = connection.execute(sa.select(ledger.c.domain, ledger.c.model_id, ledger.c.cycle_id).distinct())
    return [(row[0], row[1], row[2]) for row in rows]
