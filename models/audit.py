"""The audit log's records: what services write, what they get back, what readers of the log see."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from models.event import Violation

CONSTITUTIONAL_VALIDATION = "constitutional_validation"
"""`event_type` of a validator's verdict; its violations are what `/api/v1/violations/recent` lists."""

OPTIMIZATION_CYCLE = "optimization_cycle"
"""`event_type` of a finished cycle: holds `trigger_type`, `model_type` and `success`."""

# No control characters: they break log lines, and PostgreSQL refuses NUL.
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, lower-case hex")]
Score = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]


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
    timestamp: str | int | float | None = None
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


class ChainFaultKind(StrEnum):
    """What is wrong with the first entry that does not fit."""

    CHANGED = "changed"
    MISSING = "missing"
    REORDERED = "reordered"
    BEYOND_HEAD = "beyond_head"
    HEAD = "head"


class ChainFault(BaseModel):
    """The first entry that does not fit. `entry_id` is absent where the entry itself is."""

    model_config = ConfigDict(frozen=True)

    kind: ChainFaultKind
    seq: int
    entry_id: str | None
    detail: str


class ChainReport(BaseModel):
    """What a check of the whole chain found. `entries` counts those that were found sound."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    entries: int
    head: ChainHead | None
    fault: ChainFault | None
