"""From an entry to a link of the chain.

A link's digest is SHA-256 over its own fields and the digest of the link before it, so an entry cannot be changed,
taken out or moved without every later digest changing. Its number is left out of the digest: the order is told by
`previous` alone, which is what lets a check tell a moved entry from a changed one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from models.audit import AuditEntry
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
    content = redacted_content(entry, digest_key)
    body = canonical_json(content)
    return PreparedEntry(
        entry_id=entry.entry_id or uuid4().hex,
        event_type=entry.event_type,
        model_id=entry.model_id,
        cycle_id=entry.cycle_id,
        domain=entry.domain,
        timestamp=normalise_time(entry.timestamp),
        violation_count=len(content["violations"]),
        body=body,
        content_digest=sha256_hex(body),
    )


def redacted_content(entry: AuditEntry, digest_key: bytes) -> dict[str, Any]:
    """The fields of an entry with event text digested, as its body holds them; doing it again changes nothing.

    Raises EntryRejected where they are nested too deep.
    """
    fields = entry.model_dump(exclude_none=True)
    violations = [redact_violation(violation, digest_key) for violation in fields.pop("violations")]
    known = {name: fields.pop(name) for name in _KNOWN if name in fields}
    return {**redact(fields, digest_key), **known, "violations": violations}


def normalise_time(value: str | float | None) -> str:
    """RFC 3339 in UTC with microseconds, so that times sort as texts. None is now."""
    try:
        if value is None:
            moment = datetime.now(UTC)
        elif isinstance(value, str):
            moment = parse_time(value)
        else:
            moment = datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        # What stands there is not repeated: it may be event text in the wrong place.
        msg = "timestamp is no time; send RFC 3339, such as 2025-01-31T12:00:00Z, or seconds since 1970"
        raise EntryRejected(msg) from error
    return format_time(moment)


def format_time(moment: datetime) -> str:
    """A time in UTC as the log writes it: RFC 3339, microseconds, always 27 characters."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    """An RFC 3339 time in UTC. One without an offset is read as UTC, as OpenTelemetry and our own services write it.

    Raises ValueError, OverflowError.
    """
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


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
