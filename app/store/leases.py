"""Leases with fencing tokens: who may work on a model, and who may spend a data domain's privacy budget.

A lease is taken with compare-and-set by the database's clock. Each taking gets a larger fence than the last; a write
that must not come from a worker that has lost its lease checks the fence in its own transaction (`require`).
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, server_time
from app.store.tables import leases


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as it was granted."""

    name: str
    holder: str
    fence: int


class FenceLost(RuntimeError):
    """Somebody else holds the lease now, or it ran out. Whoever gets this must stop at once and write nothing."""


def acquire(connection: Connection, name: str, holder: str, ttl_s: float) -> Lease | None:
    """Take a free or expired lease, or renew one's own; None when another holds it."""
    now = server_time(connection)
    insert_new(connection, leases, [{"name": name, "holder": "", "fence": 0, "expires_at": 0.0}], ["name"])
    row = connection.execute(sa.select(leases).where(leases.c.name == name).with_for_update()).one()
    if row.holder == holder and row.expires_at > now:
        fence = row.fence
    elif row.expires_at > now:
        return None
    else:
        fence = row.fence + 1
    connection.execute(
        sa.update(leases).where(leases.c.name == name).values(holder=holder, fence=fence, expires_at=now + ttl_s),
    )
    return Lease(name, holder, fence)


def renew(connection: Connection, lease: Lease, ttl_s: float) -> None:
    """Extend a lease that is still one's own; raises `FenceLost`."""
    require(connection, lease)
    expires = server_time(connection) + ttl_s
    connection.execute(sa.update(leases).where(leases.c.name == lease.name).values(expires_at=expires))


def release(connection: Connection, lease: Lease) -> None:
    """Give a lease back; nothing happens when it is no longer one's own."""
    connection.execute(
        sa.update(leases)
        .where(leases.c.name == lease.name, leases.c.holder == lease.holder, leases.c.fence == lease.fence)
        .values(expires_at=0.0),
    )


def require(connection: Connection, lease: Lease) -> None:
    """Hold the lease's row for this transaction and check that it is still ours; raises `FenceLost`."""
    row = connection.execute(sa.select(leases).where(leases.c.name == lease.name).with_for_update()).one_or_none()
    if row is None or row.fence != lease.fence or row.holder != lease.holder:
        raise FenceLost(f"lease {lease.name} (fence {lease.fence}) has been taken over; this worker must stop")
    if row.expires_at <= server_time(connection):
        raise FenceLost(f"lease {lease.name} (fence {lease.fence}) has run out; this worker must stop")


def extend_if_held(connection: Connection, name: str, holder: str, ttl_s: float) -> None:
    """Extend a lease that `holder` holds just now; nothing happens otherwise."""
    now = server_time(connection)
    connection.execute(
        sa.update(leases)
        .where(leases.c.name == name, leases.c.holder == holder, leases.c.expires_at > now)
        .values(expires_at=now + ttl_s),
    )


def release_if_held(connection: Connection, name: str, holder: str) -> None:
    """Give back a lease that `holder` holds; nothing happens otherwise."""
    connection.execute(
        sa.update(leases).where(leases.c.name == name, leases.c.holder == holder).values(expires_at=0.0),
    )
