"""What the audit engine needs to know, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIN_DIGEST_KEY_BYTES = 16


class AuditConfigError(ValueError):
    """The audit engine's configuration contradicts itself or is unsafe."""


@dataclass(frozen=True, slots=True)
class SealConfig:
    """How the log is sealed.

    `signing_key` is an Ed25519 seed of 32 bytes; `retired_keys` are the public keys that signed before it. Signed
    heads go to the file `checkpoint`, which should not lie where the database's administrators can write.
    """

    signing_key: bytes = field(repr=False)
    checkpoint: Path
    interval_s: float = 60.0
    retired_keys: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.interval_s <= 0:
            msg = f"the audit engine's seal interval is {self.interval_s} s; it must be above zero"
            raise AuditConfigError(msg)


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """Configuration of the audit engine.

    `digest_key` keys the HMAC that stands for event text; it must stay the same for as long as the log is kept, or a
    repeated write no longer equals its first. `token` is what writers present as a bearer token; `read_token`, where
    set, is asked of readers (the writers' token opens reading too). Without `seal` no heads are signed. `queue_entries`
    bounds the writes that wait, and `batch_entries` those that share one transaction.
    """

    database_url: str = field(repr=False)
    digest_key: bytes = field(repr=False)
    token: str = field(repr=False)
    read_token: str | None = field(default=None, repr=False)
    seal: SealConfig | None = None
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
        if not self.token:
            msg = "the audit engine's token is empty: whoever reaches it could write; give a real one"
            raise AuditConfigError(msg)
        if self.read_token == "":
            msg = "the audit engine's read_token is empty; leave it unset or give a real one"
            raise AuditConfigError(msg)
        for name in ("max_body_bytes", "queue_entries", "batch_entries", "write_timeout_s"):
            if getattr(self, name) <= 0:
                msg = f"the audit engine's {name} is {getattr(self, name)}; it must be above zero"
                raise AuditConfigError(msg)
