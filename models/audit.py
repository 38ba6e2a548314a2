"""The audit log's records: what services write, what they get back, what readers of the log see."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.event import Violation

CONSTITUTIONAL_VALIDATION = "constitutional_validation"
"""`event_type` of a validator's verdict; its violations are what `/api/v1/violations/recent` lists."""

OPTIMIZATION_CYCLE = "optimization_cycle"
"""`event_type` of a finished cycle: holds `trigger_type`, `model_type` and `success`."""

AUDIT_PRUNED = "audit_pruned"
"""`event_type` of what the log says about its own pruning, before anything is taken."""

# No control characters: they break log lines, and PostgreSQL refuses NUL.
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, lower-case hex")]
Score = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]

# The years 1 to 9999, in which a time can be written.
_SECONDS = Field(strict=True, ge=-62_135_596_800, le=253_402_300_799)
Moment = (
    Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    | Annotated[int, _SECONDS]
    | Annotated[float, _SECONDS]
)


class AuditEntry(BaseModel):
    """What happened. Fields beyond these are kept.

    `entry_id` is made by the writer and makes the write idempotent. `timestamp` is when it happened: RFC 3339 (no
    offset means UTC) or seconds since the epoch; absent, the time of receipt counts. Event text anywhere in `context`
    or in further fields is replaced by a keyed digest before it is stored.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    entry_id: Name | None = None
    event_type: Name
    constitutional_hash: Name
    compliance_score: Score | None = None
    violations: list[str | Violation] = Field(default_factory=list, max_length=256)
    context: dict[str, Any] = Field(default_factory=dict)
    timestamp: Moment | None = None
    model_id: Name | None = None
    cycle_id: Name | None = None
    domain: Name | None = None


class AuditReceipt(BaseModel):
    """Proof of an accepted entry. `digest` is its link in the chain."""

    model_config = ConfigDict(frozen=True)

    id: str
    digest: Digest


class RecentViolation(BaseModel):
    """One violation of one validation. `id` is `<entry_id>:<index>`, the same however often it is listed."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    id: str
    type: str
    severity: str
    model_id: str


class RecentOptimization(BaseModel):
    """One finished optimization cycle."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    id: str
    trigger_type: str
    model_type: str
    success: bool


class StoredEntry(BaseModel):
    """An entry as the log holds it. `body` is the entry with its event text digested."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    seq: int
    id: str
    event_type: str
    model_id: str | None
    cycle_id: str | None
    domain: str | None
    timestamp: str
    recorded_at: str
    content_digest: str
    previous: str
    digest: str
    body: dict[str, Any]


class ChainHead(BaseModel):
    """The newest link: how many entries the log holds, and the digest that vouches for all of them."""

    model_config = ConfigDict(frozen=True)

    seq: int
    digest: str


class SignedHead(BaseModel):
    """A head of the chain, signed and kept outside the database: one line of the checkpoint file.

    It vouches for every entry up to `seq`, because `digest` follows from all of them. `previous` is the SHA-256 of the
    signed head before it (64 zeros for the first), so the checkpoint file is a chain too. `signature` is Ed25519
    (RFC 8032) over the canonical JSON of the other fields; `key_id` tells which public key to check it with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal["audit-head/1"] = "audit-head/1"
    seq: int = Field(ge=0)
    digest: Digest
    sealed_at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", description="RFC 3339, UTC")
    previous: Digest
    key_id: str = Field(pattern=r"^[0-9a-f]{16}$", description="first 16 digits of the public key's SHA-256")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


class ChainFaultKind(StrEnum):
    """What is wrong with the first entry that does not fit.

    `recomputed`: a range whose links agree with each other and not with the signed head that was made of them.
    `anchor`: the log begins later than at its first entry, and nothing shows that those before were rightly pruned.
    """

    CHANGED = "changed"
    MISSING = "missing"
    REORDERED = "reordered"
    BEYOND_HEAD = "beyond_head"
    HEAD = "head"
    RECOMPUTED = "recomputed"
    ANCHOR = "anchor"


class ChainFault(BaseModel):
    """The first entry that does not fit. `entry_id` is absent where the entry itself is, or where a range is meant.

    `through` is the range's last entry: where a chain was computed anew, signed heads tell between which two of them.
    """

    model_config = ConfigDict(frozen=True)

    kind: ChainFaultKind
    seq: int
    entry_id: str | None
    detail: str
    through: int | None = None


class ChainReport(BaseModel):
    """What a check of the whole chain found. `entries` counts those that were found sound.

    `anchor` is the last entry that pruning took; the chain begins after it. `sealed_through` is the last entry that a
    signed head vouches for, and `unsealed` counts those after it, which could still be computed anew; both are absent
    where the check was given no signed heads. `checkpoint_fault` is what is wrong with the signed heads themselves.
    """

    model_config = ConfigDict(frozen=True)

    ok: bool
    entries: int
    head: ChainHead | None
    fault: ChainFault | None
    anchor: ChainHead | None = None
    sealed_through: int | None = None
    unsealed: int | None = None
    checkpoint_fault: str | None = None
