"""What the audit engine needs to know, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

MIN_DIGEST_KEY_BYTES = 16


class AuditConfigError(ValueError):
    """The audit engine's configuration contradicts itself or is unsafe."""


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """Configuration of the audit engine.

    `digest_key` keys the HMAC that stands for event text; it must stay the same for as long as the log is kept, or a
    repeated write no longer equals its first. `token` is what writers present as a bearer token; `read_token`, where
    set, is asked of readers (the writers' token opens reading too). `queue_entries` bounds the writes that wait, and
    `batch_entries` those that share one transaction.
    """

    database_url: str = field(repr=False)
    digest_key: bytes = field(repr=False)
    token: str | None = field(default=None, repr=False)
    read_token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 256 * 1024
    queue_entries: int = 4096
    batch_entries: int = 256
    write_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if len(self.digest_key) < MIN_DIGEST_KEY_BYTES:
            msg = (
                f"the audit engine's digest key has {len(self.digest_key)} bytes; give at least "
                f"{MIN_DIGEST_KEY_BYTES}, or event text could be guessed from its digest"
            )
            raise AuditConfigError(msg)
        for name in ("token", "read_token"):
            if getattr(self, name) == "":
                msg = f"the audit engine's {name} is empty; leave it unset or give a real one"
                raise AuditConfigError(msg)
        for name in ("max_body_bytes", "queue_entries", "batch_entries", "write_timeout_s"):
            if getattr(self, name) <= 0:
                msg = f"the audit engine's {name} is {getattr(self, name)}; it must be above zero"
                raise AuditConfigError(msg)
