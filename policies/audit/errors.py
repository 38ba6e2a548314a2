"""What can go wrong in the audit log.

AuditError
 +- EntryRejected          the entry can never be stored as it is (HTTP 422)
 +- EntryConflict          its id stands in the log with other content (HTTP 409)
 +- AuditStoreUnavailable  the database or the queue cannot take it now (HTTP 503); try again
 +- UnusableKey            a signing key or a public key that is none
 +- SealBroken             the log or the checkpoint file is not what was sealed; nothing more is signed
 +- PruneRefused           what is to be pruned must be kept
 +- ExportUnreadable       a file that is no export of the log
 +- NothingToExport        the log holds no entry of what was asked for
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


class UnusableKey(AuditError, ValueError):
    """A signing key or a public key that is none."""


class SealBroken(AuditError):
    """The log, or the checkpoint file, is not what was sealed: signing it would hide that."""


class PruneRefused(AuditError):
    """What is to be pruned must be kept."""


class ExportUnreadable(AuditError):
    """The file is no export of the log, or not a whole one."""


class NothingToExport(AuditError):
    """The log holds no entry of what was asked for."""
