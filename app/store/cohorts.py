"""Cohorts of a data domain: when its privacy budget is used up, an operator opens a new one.

A new cohort has the whole budget before it, because it admits only subjects that no earlier cohort trained on: each
person's data is in one cohort, so each cohort's epsilon is what they may be told.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import outbox
from app.store.database import plain, utc_now
from app.store.tables import cohorts, cycles, ledger, manifests
from models.cycle import TERMINAL_STATES

PRIVACY_COHORT = "privacy_cohort"
"""`event_type` of the audit entries."""


class CohortRefused(RuntimeError):
    """A new cohort cannot be opened; the message says why."""


class CohortClosed(RuntimeError):
    """The domain has a newer cohort by now: nothing more is spent from this one."""


def current(connection: Connection, domain: str) -> int:
    """The domain's cohort; the first is 0."""
    newest = connection.execute(
        sa.select(sa.func.max(cohorts.c.cohort)).where(cohorts.c.domain == domain),
    ).scalar_one()
    return int(newest or 0)


def require(connection: Connection, domain: str, cohort: int) -> None:
    """Raises `CohortClosed` where the domain has a newer cohort."""
    now = current(connection, domain)
    if now != cohort:
        raise CohortClosed(f"domain {domain} is in cohort {now}: a cycle of cohort {cohort} spends nothing any more")


def open_next(connection: Connection, domain: str, *, opened_by: str, comment: str) -> int:
    """Open the domain's next cohort and tell the audit log; returns its number.

    Raises:
        CohortRefused: nothing was spent in the present one, a cycle of the domain is open, or nobody says why.
    """
    if not opened_by.strip() or not comment.strip():
        raise CohortRefused("say who opens the cohort and why: --by YOU --comment WHY")
    cohort = current(connection, domain)
    spent = sa.select(ledger.c.seq).where(ledger.c.domain == domain, ledger.c.cohort == cohort).limit(1)
    if connection.execute(spent).first() is None:
        raise CohortRefused(f"cohort {cohort} of domain {domain!r} has spent nothing: there is no need of another")
    states = [state.value for state in TERMINAL_STATES]
    at_work = sa.select(cycles.c.cycle_id).where(cycles.c.domain == domain, cycles.c.state.not_in(states))
    found = connection.execute(at_work.limit(1)).scalar_one_or_none()
    if found is not None:
        raise CohortRefused(f"cycle {found} of domain {domain!r} is open: wait for its end, or cancel it")
    row = {"domain": domain, "cohort": cohort + 1, "opened_by": opened_by, "comment": comment, "opened_at": utc_now()}
    try:
        # Two who open at once: the primary key lets one of them through.
        with connection.begin_nested():
            connection.execute(sa.insert(cohorts).values(**row))
    except sa.exc.IntegrityError:
        raise CohortRefused(f"cohort {cohort + 1} of domain {domain!r} was opened by somebody else just now") from None
    outbox.audit(
        connection,
        PRIVACY_COHORT,
        {"domain": domain, "context": row, "entry_id": f"cohort-{domain}-{cohort + 1}"},
    )
    return cohort + 1


def history(connection: Connection, domain: str) -> list[dict[str, Any]]:
    """Who opened which cohort when and why."""
    rows = connection.execute(sa.select(cohorts).where(cohorts.c.domain == domain).order_by(cohorts.c.cohort))
    return [plain(row) for row in rows]


def units_of_earlier(connection: Connection, domain: str) -> frozenset[str]:
    """The privacy units (subject tokens, or ids of examples without one) that earlier cohorts may have trained on.

    All members of every cycle that spent anything count, also those that no round made compliant.
    """
    cohort = current(connection, domain)
    spent = sa.select(ledger.c.cycle_id).where(ledger.c.domain == domain, ledger.c.cohort < cohort)
    rows = connection.execute(sa.select(manifests.c.document).where(manifests.c.cycle_id.in_(spent)))
    return frozenset(member["unit"] for row in rows for member in row.document["members"])
