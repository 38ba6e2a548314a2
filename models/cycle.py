"""Optimization cycles: their states, what opens them, what they are about to do."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class CycleState(StrEnum):
    """States of a cycle; `TRANSITIONS` says which may follow which."""

    PROPOSED = "proposed"
    PREPARING = "preparing"
    REVISING = "revising"
    AWAITING_APPROVAL = "awaiting_approval"
    APPROVED = "approved"
    TRAINING = "training"
    EVALUATING = "evaluating"
    AWAITING_PROMOTION = "awaiting_promotion"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATES = frozenset(
    {CycleState.PROMOTED, CycleState.REJECTED, CycleState.FAILED, CycleState.CANCELLED},
)

_ANYWHERE = frozenset({CycleState.FAILED, CycleState.CANCELLED})

TRANSITIONS: dict[CycleState, frozenset[CycleState]] = {
    CycleState.PROPOSED: frozenset({CycleState.PREPARING}) | _ANYWHERE,
    CycleState.PREPARING: frozenset({CycleState.REVISING, CycleState.REJECTED}) | _ANYWHERE,
    CycleState.REVISING: frozenset(
        {CycleState.AWAITING_APPROVAL, CycleState.APPROVED, CycleState.REJECTED},
    )
    | _ANYWHERE,
    # Back to revising where what was approved is that text may be sent to a teacher.
    CycleState.AWAITING_APPROVAL: frozenset({CycleState.APPROVED, CycleState.REVISING, CycleState.REJECTED})
    | _ANYWHERE,
    CycleState.APPROVED: frozenset({CycleState.TRAINING, CycleState.REJECTED}) | _ANYWHERE,
    CycleState.TRAINING: frozenset({CycleState.EVALUATING, CycleState.REJECTED}) | _ANYWHERE,
    CycleState.EVALUATING: frozenset(
        {CycleState.AWAITING_PROMOTION, CycleState.PROMOTED, CycleState.REJECTED},
    )
    | _ANYWHERE,
    CycleState.AWAITING_PROMOTION: frozenset({CycleState.PROMOTED, CycleState.REJECTED}) | _ANYWHERE,
    CycleState.PROMOTED: frozenset(),
    CycleState.REJECTED: frozenset(),
    CycleState.FAILED: frozenset(),
    CycleState.CANCELLED: frozenset(),
}


class TriggerType(StrEnum):
    """Why a cycle opened."""

    COUNT = "count"
    AGE = "age"
    DRIFT = "drift"
    MANUAL = "manual"


class TrainingPlan(BaseModel):
    """What a cycle is about to do to a model, as public facts only.

    `noise_multiplier` is not part of the plan: it follows from the plan and the ledger, and is solved anew after a
    crash. An approval binds to the digest of plan and manifest.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    base_model: str
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    target_modules: tuple[str, ...]
    epochs: int
    sample_rate: float = Field(gt=0.0, le=1.0)
    steps: int = Field(ge=1)
    learning_rate: float
    max_grad_norm: float
    epsilon_target: float = Field(gt=0.0, description="cumulative for the data domain after this cycle")
    delta: float = Field(gt=0.0, lt=1.0)


class Manifest(BaseModel):
    """An immutable snapshot of a cycle's data: ids and keyed digests, never text."""

    model_config = ConfigDict(frozen=True)

    cycle_id: str
    domain: str
    members: tuple[ManifestMember, ...]
    held_out: tuple[ManifestMember, ...]
    public_benign: int
    excluded: dict[str, int] = Field(description="count of examples left out, by reason")
    excluded_examples: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="ids of the examples left out, by reason"
    )
    constitution_digest: str
    cohort: int = Field(0, ge=0, description="of the data domain: whose budget pays, and who may be in")


class ManifestMember(BaseModel):
    """One example of a snapshot. `digest` is keyed (HMAC-SHA256), so it reveals nothing about the text."""

    model_config = ConfigDict(frozen=True)

    example_id: str
    digest: str
    violation_type: str
    unit: str = Field(description="privacy unit: the subject's token, else the example's own id")


class Cycle(BaseModel):
    """One row of the `cycles` table."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    cycle_id: str
    model_id: str
    domain: str
    state: CycleState
    trigger_type: TriggerType
    requested_by: str
    version: int = Field(description="grows by one with each change; transitions compare and set it")
    plan: TrainingPlan | None = None
    plan_digest: str | None = None
    manifest_digest: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    reasons: tuple[dict[str, str], ...] = ()
    created_at: str
    updated_at: str


class CycleRecord(BaseModel):
    """What `optimization-cycles` carries: that a cycle changed its state. The row in SQL is the truth."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = 1
    cycle_id: str
    model_id: str
    domain: str
    state: CycleState
    trigger_type: TriggerType
    version: int
    timestamp: str


Manifest.model_rebuild()
