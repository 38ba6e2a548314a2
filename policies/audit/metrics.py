"""The audit engine's own metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

WRITTEN = "written"
CONFLICT = "conflict"
REJECTED = "rejected"
UNAVAILABLE = "unavailable"
SEALED = "sealed"
SEAL_FAILED = "failed"


class AuditMetrics:
    """Counts what became of every write, and of every seal.

    `written` includes repeats of an entry that is in the log already.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.writes = Counter(
            "audit_writes",
            "Audit entries received, by what became of them: written, conflict, rejected, unavailable.",
            ["outcome"],
            registry=registry,
        )
        for outcome in (WRITTEN, CONFLICT, REJECTED, UNAVAILABLE):
            self.writes.labels(outcome)
        self.transaction_seconds = Histogram(
            "audit_transaction_seconds",
            "Time of one transaction that appends entries.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
            registry=registry,
        )
        self.transaction_entries = Histogram(
            "audit_transaction_entries",
            "Entries that shared one transaction.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.waiting = Gauge("audit_waiting_entries", "Entries that wait for a transaction.", registry=registry)
        self.seals = Counter(
            "audit_seals",
            "Times that the log's newest entry was to be signed: sealed, or failed and to be tried again.",
            ["outcome"],
            registry=registry,
        )
        for outcome in (SEALED, SEAL_FAILED):
            self.seals.labels(outcome)
        self.sealed_through = Gauge(
            "audit_sealed_through_entry",
            "The last entry that a signed head vouches for.",
            registry=registry,
        )
        self.seal_broken = Gauge(
            "audit_seal_broken",
            "1 when the log or the checkpoint file is not what was sealed; nothing is sealed from then on.",
            registry=registry,
        )
