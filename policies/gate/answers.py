"""Reads an engine's answer. Anything but a whole, consistent decision is no decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.decision import GateDecision, GateReason
from policies.gate.facts import FactsError, encode_input
from policies.gate.interface import FACTS_UNREADABLE, POLICY_MALFORMED, undecided


class _Revision(BaseModel):
    model_config = ConfigDict(strict=True)

    bundle: str = Field(min_length=1)
    data: str = Field(min_length=1)


class _Reason(BaseModel):
    model_config = ConfigDict(strict=True)

    code: str = Field(min_length=1)
    message: str = Field(min_length=1)


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)

    allow: bool
    reasons: list[_Reason]
    lane: Literal["fast", "slow"]
    human_review_required: bool
    revision: _Revision


def prepare_input(action: str, facts: Mapping[str, Any]) -> tuple[str, GateReason | None]:
    """The policies' input document, and the reason to refuse where the facts cannot be written as JSON.

    Facts that cannot be read prove nothing, so the policies are then asked without any: the refusal is conclusive
    (asking again would change nothing) and carries the revisions that decided it.
    """
    try:
        return encode_input(action, facts), None
    except FactsError as error:
        return encode_input(action, {}), GateReason(code=FACTS_UNREADABLE, message=f"Unreadable facts: {error}.")


def read_answer(
    action: str,
    engine: str,
    answer: Any,
    *,
    unreadable: GateReason | None = None,
    decision_id: str | None = None,
) -> GateDecision:
    """The decision that the policies' `decision` document states; undecided where it states none.

    The reasons come sorted by code. `unreadable` is the reason from `prepare_input`: it comes first, and with it
    nothing is permitted.
    """
    try:
        parsed = _Answer.model_validate(answer)
    except ValidationError as error:
        fields = sorted({".".join(map(str, problem["loc"])) or "document" for problem in error.errors()})
        message = f"The policy's answer is no decision: {', '.join(fields)} does not fit."
        return undecided(action, engine, POLICY_MALFORMED, message)
    if parsed.allow is bool(parsed.reasons):
        message = "The policy's answer contradicts itself: allow and its reasons disagree."
        return undecided(action, engine, POLICY_MALFORMED, message)
    if parsed.human_review_required and parsed.lane != "slow":
        message = "The policy's answer contradicts itself: a human reviews only in the slow lane."
        return undecided(action, engine, POLICY_MALFORMED, message)
    # Engines order a set of records each in its own way.
    ordered = sorted(parsed.reasons, key=lambda reason: reason.code)
    reasons = tuple(GateReason(code=reason.code, message=reason.message) for reason in ordered)
    return GateDecision(
        action=action,
        allow=parsed.allow and unreadable is None,
        conclusive=True,
        reasons=reasons if unreadable is None else (unreadable, *reasons),
        lane=parsed.lane,
        human_review_required=parsed.human_review_required,
        bundle_revision=parsed.revision.bundle,
        data_revision=parsed.revision.data,
        engine=engine,
        decision_id=decision_id or uuid4().hex,
    )
