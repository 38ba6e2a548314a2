"""What the policy gate answers: may an action go on, and if not, why not."""

from __future__ import annotations

from typing import Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, model_validator

APPROVAL_PREFIX = "approval_"
"""Reason codes that begin so are mended by a reviewer's approval; no other reason is."""


class GateReason(BaseModel):
    """One requirement that the facts did not prove. The code is stable; the sentence is for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str = Field(min_length=1)
    message: str = Field(min_length=1)

    @property
    def is_approval(self) -> bool:
        """Whether a reviewer's approval would mend it."""
        return self.code.startswith(APPROVAL_PREFIX)


class GateDecision(BaseModel):
    """The gate's answer to one question.

    An answer that is not `conclusive` is no verdict: the policy could not be asked. Nothing is permitted by it and
    nothing refused; whoever asked waits and asks again. The revisions are SHA-256 digests of the policies and of the
    data that decided, and are absent only where nothing decided. `human_review_required` is what the policies found,
    never the requester's word; records older than the field read as false.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: str
    allow: bool
    conclusive: bool
    reasons: tuple[GateReason, ...]
    lane: Literal["fast", "slow"]
    human_review_required: bool = False
    bundle_revision: str | None
    data_revision: str | None
    engine: str = Field(min_length=1)
    decision_id: str = Field(default_factory=lambda: uuid4().hex, min_length=1)

    @model_validator(mode="after")
    def _permits_only_what_is_proven(self) -> Self:
        if self.allow and (self.reasons or not self.conclusive):
            raise ValueError("a permission is conclusive and leaves no reason to refuse")
        if not self.allow and not self.reasons:
            raise ValueError("a decision that does not permit says why")
        if self.human_review_required and not (self.conclusive and self.lane == "slow"):
            raise ValueError("a human reviews only what the policies put in the slow lane")
        if self.conclusive and not (self.bundle_revision and self.data_revision):
            raise ValueError("a conclusive decision names the revisions of policies and data that decided")
        return self

    @property
    def verdict(self) -> Literal["allow", "refuse", "unavailable"]:
        """`unavailable` where the policy could not be asked: no verdict at all."""
        if not self.conclusive:
            return "unavailable"
        return "allow" if self.allow else "refuse"

    @property
    def needs_approval(self) -> bool:
        """Whether only a reviewer's approval is missing, so that the action waits rather than being refused."""
        return self.conclusive and not self.allow and all(reason.is_approval for reason in self.reasons)
