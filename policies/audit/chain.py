"""From an entry to a link of the chain.

A link's digest is SHA-256 over its own fields and the digest of the link before it, so an entry cannot be changed,
taken out or moved without every later digest changing. Its number is left out of the digest: the order is told by
`previous` alone, which is what lets a check tell a moved entry from a changed one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from models.audit import AuditEntry, ChainFault, ChainFaultKind, ChainHead, ChainReport
from policies.audit.errors import EntryRejected
from policies.audit.redact import canonical_json, redact, redact_violation

GENESIS = "0" * 64
"""What the first entry names as the one before it."""

_LINK_VERSION = "audit-link/1"
_KNOWN = (
    "entry_id",
    "event_type",
    "constitutional_hash",
    "compliance_score",
    "timestamp",
    "model_id",
    "cycle_id",
    "domain",
)


@dataclass(frozen=True, slots=True)
class PreparedEntry:
    """An entry ready to be chained: text digested, body canonical, the searched fields beside it."""

    entry_id: str
    event_type: str
    model_id: str | None
    cycle_id: str | None
    domain: str | None
    timestamp: str
    violation_count: int
    body: str
    content_digest: str


def prepare(entry: AuditEntry, digest_key: bytes) -> PreparedEntry:
    """Redact, canonicalise and digest an entry. Pure, but for a fresh id and time where the entry brings none.

    Raises EntryRejected where it cannot be represented.
    """
    fields = entry.model_dump(exclude_none=True)
    violations = [redact_violation(violation, digest_key) for violation in fields.pop("violations")]
    known = {name: fields.pop(name) for name in _KNOWN if name in fields}
    content = {**redact(fields, digest_key), **known, "violations": violations}
    body = canonical_json(content)
    return PreparedEntry(
        entry_id=entry.entry_id or uuid4().hex,
        event_type=entry.event_type,
        model_id=entry.model_id,
        cycle_id=entry.cycle_id,
        domain=entry.domain,
        timestamp=normalise_time(entry.timestamp),
        violation_count=len(violations),
        body=body,
        content_digest=sha256_hex(body),
    )


def normalise_time(value: str | float | None) -> str:
    """RFC 3339 in UTC with microseconds, so that times sort as texts. None is now."""
    try:
        if value is None:
            moment = datetime.now(UTC)
        elif isinstance(value, str):
            moment = datetime.fromisoformat(value)
            # A time without an offset is read as UTC, as OpenTelemetry and this system's own services write it.
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        else:
            moment = datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        msg = f"timestamp {value!r} is no time; send RFC 3339, such as 2025-01-31T12:00:00Z, or seconds since 1970"
        raise EntryRejected(msg) from error
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f").zfill(26) + "Z"


def sha256_hex(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def link(entry: PreparedEntry, seq: int, recorded_at: str, previous: str) -> dict[str, Any]:
    """The row of the log for `entry` at place `seq` after the link with digest `previous`."""
    row: dict[str, Any] = {
        "seq": seq,
        "entry_id": entry.entry_id,
        "event_type": entry.event_type,
        "model_id": entry.model_id,
        "cycle_id": entry.cycle_id,
        "domain": entry.domain,
        "timestamp": entry.timestamp,
        "recorded_at": recorded_at,
        "violation_count": entry.violation_count,
        "body": entry.body,
        "content_digest": entry.content_digest,
        "previous": previous,
    }
    row["digest"] = link_digest(row)
    return row


def link_digest(row: Mapping[str, Any]) -> str:
    """The digest that a row must have."""
    fields = [
        _LINK_VERSION,
        row["previous"],
        row["entry_id"],
        row["event_type"],
        row["model_id"],
        row["cycle_id"],
        row["domain"],
        row["timestamp"],
        row["recorded_at"],
        row["violation_count"],
        row["content_digest"],
    ]
    return sha256_hex(canonical_json(fields))


class ChainCheck:
    """Walks the chain from its first entry and stops at the first that does not fit."""

    def __init__(self) -> None:
        self._entries = 0
        self._previous = GENESIS
        self._misplaced = False
        self.fault: ChainFault | None = None

    @property
    def expected_previous(self) -> str:
        """The digest that the next entry must name as the one before it."""
        return self._previous

    @property
    def misplaced(self) -> bool:
        """Whether the fault is a sound entry in the wrong place; `settle_misplaced` then says which kind."""
        return self._misplaced

    def walk(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Check the next rows, in order of `seq`. False once a fault is found."""
        for row in rows:
            if self.fault is None:
                self._step(row)
            if self.fault is not None:
                return False
            self._entries += 1
            self._previous = row["digest"]
        return True

    def settle_misplaced(self, *, successor_exists: bool) -> None:
        """Say whether the entry that belongs in a misplaced one's place stands elsewhere in the log, or is gone."""
        if self.fault is not None and self._misplaced:
            kind = ChainFaultKind.REORDERED if successor_exists else ChainFaultKind.MISSING
            self.fault = self.fault.model_copy(update={"kind": kind})

    def finish(self, head: ChainHead | None) -> ChainReport:
        """Compare the end of the walk with the head row and report."""
        if self.fault is None:
            self._check_head(head)
        return ChainReport(ok=self.fault is None, entries=self._entries, head=head, fault=self.fault)

    def _step(self, row: Mapping[str, Any]) -> None:
        place = self._entries + 1
        if row["seq"] != place:
            found = f"entry {row['seq']} ({row['entry_id']}) stands where entry {place} belongs"
            self._fail(ChainFaultKind.MISSING, place, None, found)
        elif sha256_hex(row["body"]) != row["content_digest"]:
            self._fail(ChainFaultKind.CHANGED, place, row["entry_id"], "its body does not match its content digest")
        elif link_digest(row) != row["digest"]:
            self._fail(ChainFaultKind.CHANGED, place, row["entry_id"], "its fields do not match its digest")
        elif row["previous"] != self._previous:
            self._misplaced = True
            found = "it is sound in itself but does not follow the entry before it"
            self._fail(ChainFaultKind.REORDERED, place, row["entry_id"], found)

    def _check_head(self, head: ChainHead | None) -> None:
        if head is None:
            self._fail(ChainFaultKind.HEAD, self._entries, None, "the head row is gone")
        elif head.seq > self._entries:
            found = f"the log ends at entry {self._entries}, its head is entry {head.seq}"
            self._fail(ChainFaultKind.MISSING, self._entries + 1, None, found)
        elif head.seq < self._entries:
            found = f"the log goes on to entry {self._entries}, its head is entry {head.seq}"
            self._fail(ChainFaultKind.BEYOND_HEAD, head.seq + 1, None, found)
        elif head.digest != self._previous:
            self._fail(ChainFaultKind.HEAD, head.seq, None, "the head's digest is not the last entry's")

    def _fail(self, kind: ChainFaultKind, seq: int, entry_id: str | None, detail: str) -> None:
        self.fault = ChainFault(kind=kind, seq=seq, entry_id=entry_id, detail=detail)
