"""What can go wrong in the audit log.

AuditError
 +- EntryRejected       the entry can never be stored as it is (HTTP 422)
 +- EntryConflict       its id stands in the log with other content (HTTP 409)
 +- AuditStoreUnavailable  the database or the queue cannot take it now (HTTP 503); try again
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of the audit log's errors."""


class EntryRejected(AuditError):
    """The entry cannot be represented: not JSON, nested too deep, a timestamp that is none."""


class EntryConflict(AuditError):
    """Another entry already has this id."""

    def __init__(self, entry_id: str) -> None:
        super().__init__(
            f"audit entry {entry_id!r} is in the log with other content; a new fact needs a new entry_id",
        )
        self.entry_id = entry_id


class AuditStoreUnavailable(AuditError):
    """The log cannot be written or read at the moment."""
