"""What every data domain has spent of its privacy budget, as the training jobs last computed it from the ledger.

The accountant needs torch, which most workers do without; the job that spends also says how much is spent then, with
every step, and this reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.tables import cycle_progress, cycles, ledger


@dataclass(frozen=True, slots=True)
class DomainSpent:
    """Cumulative epsilon of a domain after a model's cycle."""

    domain: str
    model_id: str
    cycle_id: str
    epsilon: float


def spent(connection: Connection) -> list[DomainSpent]:
    """One entry for each cycle that has spent; the newest figure of its domain's cohort stands in each of them."""
    spenders = sa.select(ledger.c.cycle_id, ledger.c.cohort).distinct().subquery()
    columns = (cycles.c.domain, cycles.c.model_id, cycles.c.cycle_id, cycles.c.facts)
    rows = connection.execute(
        sa.select(*columns, spenders.c.cohort, cycle_progress.c.detail)
        .join(spenders, spenders.c.cycle_id == cycles.c.cycle_id)
        .join(cycle_progress, cycle_progress.c.cycle_id == cycles.c.cycle_id, isouter=True)
        .order_by(cycles.c.created_at),
    ).all()
    newest: dict[tuple[str, int], float] = {}
    for row in rows:
        known = (row.facts.get("privacy") or {}).get("epsilon", 0.0), (row.detail or {}).get("epsilon", 0.0)
        place = row.domain, row.cohort
        newest[place] = max(newest.get(place, 0.0), *known)
    return [DomainSpent(row.domain, row.model_id, row.cycle_id, newest[row.domain, row.cohort]) for row in rows]
