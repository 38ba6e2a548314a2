"""What every data domain has spent of its privacy budget, as the training jobs last computed it from the ledger.

The accountant needs torch, which most workers do without; the job that spends also says how much is spent then, with
every step, and this reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.tables import cohorts, cycle_progress, cycles, ledger


@dataclass(frozen=True, slots=True)
class DomainSpent:
    """Cumulative epsilon of a domain's cohort after a model's cycle."""

    domain: str
    model_id: str
    cycle_id: str
    epsilon: float
    cohort: int = 0


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
    return [
        DomainSpent(row.domain, row.model_id, row.cycle_id, newest[row.domain, row.cohort], row.cohort) for row in rows
    ]


@dataclass(frozen=True, slots=True)
class DomainBudget:
    """What a domain's present cohort has spent: `epsilon` in `cycles` cycles."""

    domain: str
    cohort: int
    epsilon: float
    cycles: int


def by_domain(connection: Connection) -> list[DomainBudget]:
    """The newest cohort of every domain that has spent or has a cohort of its own; one row a domain, however many
    cycles there were.
    """
    newest: dict[str, int] = {
        row[0]: int(row[1])
        for row in connection.execute(
            sa.select(cohorts.c.domain, sa.func.max(cohorts.c.cohort)).group_by(cohorts.c.domain)
        )
    }
    # One look into the ledger's index a cycle, instead of reading all its steps: a cycle spends from one cohort.
    spent_from = sa.select(sa.func.max(ledger.c.cohort)).where(ledger.c.cycle_id == cycles.c.cycle_id).scalar_subquery()
    said = sa.func.coalesce(cycles.c.facts["privacy"]["epsilon"].as_float(), 0.0)
    done = sa.func.coalesce(cycle_progress.c.detail["epsilon"].as_float(), 0.0)
    of_cycle = (
        sa.select(cycles.c.domain, spent_from.label("cohort"), said.label("said"), done.label("done"))
        .join(cycle_progress, cycle_progress.c.cycle_id == cycles.c.cycle_id, isouter=True)
        .subquery()
    )
    columns = of_cycle.c
    rows = connection.execute(
        sa.select(columns.domain, columns.cohort, sa.func.max(columns.said), sa.func.max(columns.done), sa.func.count())
        .where(columns.cohort.is_not(None))
        .group_by(columns.domain, columns.cohort)
    ).all()
    found = {domain: DomainBudget(domain, cohort, 0.0, 0) for domain, cohort in newest.items()}
    for domain, cohort, epsilon, at_work, count in rows:
        if cohort == newest.get(domain, 0):
            found[domain] = DomainBudget(domain, cohort, max(epsilon, at_work), count)
    return sorted(found.values(), key=lambda one: (-one.epsilon, one.domain))
