"""Takes out what need not be kept any longer, and nothing else.

Only whole ranges that a signed head vouches for are taken, and only once that head is itself older than the retention
period: whoever checks the log later can tell from the signature that no younger entry went with them. The log says
first what will be taken. Each step then moves the anchor, after which the chain begins, and deletes up to it, in one
transaction, so an interrupted pruning leaves a log that verifies.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import Connection, Engine, delete, func, insert, select

from models.audit import AUDIT_PRUNED, AuditEntry, SignedHead
from policies.audit.chain import format_time
from policies.audit.checkpoint import CheckpointReader
from policies.audit.engine import transaction
from policies.audit.errors import PruneRefused
from policies.audit.seal import head_line
from policies.audit.store import AuditStore
from policies.audit.tables import audit_entries, audit_prunings
from policies.audit.verify import MIN_RETENTION_DAYS, Witness, pruned_through, verify_log

STEP_ENTRIES = 10_000
"""Entries deleted in one transaction, as far as signed heads stand close enough: writers wait for it."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """What will be taken: everything up to the last of `steps`, which are signed heads. None: nothing is old enough."""

    steps: tuple[SignedHead, ...]
    entries: int
    older_than: str

    @property
    def through(self) -> int:
        """The last entry that will be taken; 0 for none."""
        return self.steps[-1].seq if self.steps else 0


def plan_pruning(
    engine: Engine, witness: Witness, *, retention_days: int, now: datetime, before: datetime | None = None
) -> Pruning:
    """What may be pruned now: entries recorded and sealed before `before`, by default all that is old enough.

    Raises PruneRefused where that would take younger entries, or where the log does not verify; AuditStoreUnavailable.
    """
    cutoff = now - timedelta(days=max(retention_days, MIN_RETENTION_DAYS))
    if before is not None and before > cutoff:
        raise PruneRefused(
            f"entries since {format_time(cutoff)} must be kept ({max(retention_days, MIN_RETENTION_DAYS)} days), and "
            f"those before {format_time(before)} were to be pruned: name an earlier time"
        )
    limit = format_time(cutoff if before is None else before)
    report = verify_log(engine, witness, now)
    if not report.ok:
        found = report.checkpoint_fault if report.fault is None else f"entry {report.fault.seq}: {report.fault.detail}"
        raise PruneRefused(f"the audit log does not verify, so nothing is pruned: {found}")
    with transaction(engine) as connection:
        pruned = pruned_through(connection)
        anchor = 0 if pruned is None else int(pruned["seq"])
        kept = _first_kept(connection, limit)
    steps = _steps(CheckpointReader(witness.checkpoint, witness.keys), anchor, kept, limit)
    return Pruning(steps, steps[-1].seq - anchor if steps else 0, limit)


def prune(engine: Engine, store: AuditStore, plan: Pruning, *, constitutional_hash: str, by: str, now: datetime) -> str:
    """Say in the log what is taken, then take it; returns the `entry_id` of what was said.

    Raises AuditStoreUnavailable; running it again goes on.
    """
    last = plan.steps[-1]
    entry_id = f"pruning-{uuid4().hex}"
    taken = {"through": last.seq, "digest": last.digest, "sealed_at": last.sealed_at, "entries": plan.entries}
    said = {
        "entry_id": entry_id,
        "event_type": AUDIT_PRUNED,
        "constitutional_hash": constitutional_hash,
        "context": {**taken, "older_than": plan.older_than, "by": by},
    }
    store.append(AuditEntry.model_validate(said))
    for head in plan.steps:
        with transaction(engine, write=True) as connection:
            _take(connection, head, entry_id, format_time(now))
    return entry_id


def _first_kept(connection: Connection, limit: str) -> int | None:
    """The first entry that is not older than the limit, however the clocks of several engines differ."""
    query = select(func.min(audit_entries.c.seq)).where(audit_entries.c.recorded_at >= limit)
    found: int | None = connection.execute(query).scalar()
    return found


def _steps(heads: CheckpointReader, anchor: int, kept: int | None, limit: str) -> tuple[SignedHead, ...]:
    steps: list[SignedHead] = []
    start, last = anchor, None
    for head in heads:
        if head.seq <= anchor:
            continue
        if head.sealed_at >= limit or (kept is not None and head.seq >= kept):
            break
        if last is not None and head.seq - start > STEP_ENTRIES:
            steps.append(last)
            start = last.seq
        last = head
    return (*steps, last) if last is not None else ()


def _take(connection: Connection, head: SignedHead, entry_id: str, now: str) -> None:
    below = audit_entries.c.seq <= head.seq
    entries = connection.execute(select(func.count()).select_from(audit_entries).where(below)).scalar_one()
    connection.execute(
        insert(audit_prunings).values(
            seq=head.seq,
            digest=head.digest,
            head=head_line(head),
            entries=entries,
            entry_id=entry_id,
            pruned_at=now,
        ),
    )
    # The trigger permits it up to the row above, and no further.
    connection.execute(delete(audit_entries).where(below))
