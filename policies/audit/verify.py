"""Checks the log in the database: the links, the head row, what was pruned, and the signed heads outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, inspect, select

from models.audit import ChainHead, ChainReport, SignedHead
from policies.audit.chain import parse_time
from policies.audit.check import EMPTY, ChainCheck
from policies.audit.checkpoint import CheckpointReader
from policies.audit.engine import transaction
from policies.audit.seal import KeyRing
from policies.audit.tables import HEAD_ID, audit_entries, audit_head, audit_prunings

MIN_RETENTION_DAYS = 2555
"""No entry younger than this is ever pruned; a check finds it where one was."""

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Witness:
    """What a log is checked with, from outside its database: public keys, and the file of signed heads."""

    keys: KeyRing
    checkpoint: Path


def verify_log(engine: Engine, witness: Witness | None = None, now: datetime | None = None) -> ChainReport:
    """Recompute the whole chain from one snapshot and name the first entry that does not fit.

    Takes time in proportion to the log and does not hold writers up. `now` is the time that ages are told from.
    Raises AuditStoreUnavailable.
    """
    # The heads are looked up before the entries: whatever was sealed by then is in the snapshot.
    heads = None if witness is None else CheckpointReader(witness.checkpoint, witness.keys)
    with transaction(engine) as connection:
        head = head_of(connection)
        anchor, problem = proven_anchor(connection, None if witness is None else witness.keys, now or datetime.now(UTC))
        check = ChainCheck(anchor, heads)
        if problem is not None:
            check.refuse_anchor(problem)
        _walk(connection, check, None)
    report = check.finish(head)
    if heads is None:
        return report
    heads.drain()
    return report.model_copy(update={"ok": report.ok and heads.fault is None, "checkpoint_fault": heads.fault})


def verify_since(connection: Connection, start: ChainHead) -> ChainReport:
    """Check the entries after `start` alone, and that `start` is still what it was."""
    check = ChainCheck(start)
    if digest_at(connection, start.seq) != start.digest:
        check.refuse_anchor(f"entry {start.seq} is no longer the one that was sealed")
    _walk(connection, check, start.seq)
    return check.finish(head_of(connection))


def head_of(connection: Connection) -> ChainHead | None:
    """The head row; None only where it was taken away."""
    query = select(audit_head.c.seq, audit_head.c.digest).where(audit_head.c.id == HEAD_ID)
    row = connection.execute(query).one_or_none()
    return None if row is None else ChainHead(seq=row.seq, digest=row.digest)


def pruned_through(connection: Connection) -> Mapping[str, Any] | None:
    """The row of the latest pruning; None where nothing was pruned."""
    # A log that this version has not opened yet has no such table.
    if not inspect(connection).has_table(audit_prunings.name):
        return None
    query = select(audit_prunings).order_by(audit_prunings.c.seq.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else dict(row)


def digest_at(connection: Connection, seq: int) -> str | None:
    """The digest of the entry at a place, as it stands there; that of the anchor where it was pruned, else None."""
    if seq == 0:
        return EMPTY.digest
    digest = connection.execute(select(audit_entries.c.digest).where(audit_entries.c.seq == seq)).scalar_one_or_none()
    if digest is None:
        pruned = pruned_through(connection)
        digest = pruned["digest"] if pruned is not None and pruned["seq"] == seq else None
    return digest


def page(connection: Connection, after: int | None) -> list[dict[str, Any]]:
    """The next entries after a place, or from the first on."""
    query = select(audit_entries).order_by(audit_entries.c.seq).limit(PAGE)
    if after is not None:
        query = query.where(audit_entries.c.seq > after)
    return [dict(row) for row in connection.execute(query).mappings()]


def _walk(connection: Connection, check: ChainCheck, after: int | None) -> None:
    # From the first entry there is, not from the anchor: one that stands before it does not belong there.
    while rows := page(connection, after):
        if not check.walk(rows):
            break
        after = rows[-1]["seq"]
    if check.misplaced:
        query = select(audit_entries.c.seq).where(audit_entries.c.previous == check.expected_previous).limit(1)
        check.settle_misplaced(successor_exists=connection.execute(query).first() is not None)


def proven_anchor(connection: Connection, keys: KeyRing | None, now: datetime) -> tuple[ChainHead, str | None]:
    """Where the chain begins, and what keeps that from being believed.

    The signature says when the head was sealed, which no entry before it is younger than: entries that were deleted
    before their time cannot be passed off as pruned.
    """
    row = pruned_through(connection)
    if row is None:
        return EMPTY, None
    anchor = ChainHead(seq=row["seq"], digest=row["digest"])
    where = f"the log is said to be pruned up to entry {anchor.seq}"
    if keys is None:
        return anchor, f"{where}, and no public key is given to check that with"
    try:
        head = SignedHead.model_validate_json(row["head"])
    except ValidationError:
        return anchor, f"{where}, and no signed head of that entry is kept"
    if (head.seq, head.digest) != (anchor.seq, anchor.digest):
        return anchor, f"{where}, and the signed head kept for it is that of entry {head.seq}"
    if (problem := keys.problem(head)) is not None:
        return anchor, f"{where}, and the signed head kept for it cannot be trusted: {problem}"
    if now - parse_time(head.sealed_at) < timedelta(days=MIN_RETENTION_DAYS):
        return anchor, f"{where}, which was sealed at {head.sealed_at}: entries must be kept {MIN_RETENTION_DAYS} days"
    return anchor, None
