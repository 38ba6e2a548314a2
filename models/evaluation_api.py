"""The policy engine's HTTP contract: what goes over the wire on port 8001."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator
from pydantic.config import JsonDict

HASH_MISMATCH = "constitutional_hash_mismatch"
"""The violation that an engine reports when the request named another constitution than the one it holds."""

Score = Annotated[float, Field(ge=0.0, le=1.0)]
_PROMPT_IS_TEXT: JsonDict = {
    "properties": {"prompt": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "what content answers"}}
}


class _Record(BaseModel):
    # A tolerant reader: engines and clients of other makes may send more than the contract names.
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Judged(_Record):
    """A text with its context. `context.prompt`, where present, is the request that `content` answers."""

    content: str
    context: Annotated[dict[str, JsonValue], Field(json_schema_extra=_PROMPT_IS_TEXT)] = Field(default_factory=dict)
    constitutional_hash: str

    @field_validator("content", "constitutional_hash")
    @classmethod
    def _is_unicode(cls, text: str) -> str:
        _check_unicode(text)
        return text

    @field_validator("context")
    @classmethod
    def _prompt_is_text(cls, context: dict[str, JsonValue]) -> dict[str, JsonValue]:
        prompt = context.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"context.prompt is {type(prompt).__name__}; send the request as text, or leave it out")
        _check_unicode(prompt or "")
        return context

    @property
    def prompt(self) -> str | None:
        """The request that `content` answers; None when `content` is itself to be judged as a request."""
        prompt = self.context.get("prompt")
        return prompt if isinstance(prompt, str) and prompt.strip() else None


def _check_unicode(text: str) -> None:
    """Refuse half of a surrogate pair: JSON can carry one, and no text holds it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is a lone surrogate; send valid Unicode") from None


class EvaluateRequest(_Judged):
    """One text to judge by the constitution whose declared identifier is `constitutional_hash`."""

    action: Literal["constitutional_evaluation"] = "constitutional_evaluation"


class Evaluation(_Record):
    """A decision. Compliant, by the client's rule, is `allow` and `confidence_score` at least the threshold.

    `confidence_score` is the calibrated confidence that the text is compliant; `scores` holds the evaluators'
    findings it was made from, each in 0..1.
    """

    allow: bool
    confidence_score: Score
    violations: list[str] = Field(default_factory=list)
    reason: str
    policy_version: str
    decision_id: str
    constitution_digest: str
    scores: dict[str, Score] = Field(default_factory=dict)


class EvaluateBatchRequest(_Record):
    """Many texts in one request; the engine bounds their number."""

    items: Annotated[list[EvaluateRequest], Field(min_length=1)]


class EvaluateBatchResponse(_Record):
    """One decision an item, in the order of the items."""

    results: list[Evaluation]


class ValidateRequest(_Judged):
    """Asks only whether the text passes."""


class ValidateResponse(_Record):
    """`valid` is the whole answer: right constitution, allowed, and at least the engine's threshold.

    The rest names the decision behind it; engines of other makes may leave it out.
    """

    valid: bool
    compliance_score: Score
    hash_match: bool
    reason: str = ""
    decision_id: str = ""
    constitution_digest: str = ""


class RecentEvaluation(_Record):
    """What the monitoring agent counts: a decision without any text. `type` comes from the request's context."""

    id: str
    model_id: str = "unknown"
    type: str = "unknown"
    model_type: str = "unknown"
    risk_level: str = "unknown"
    compliance_score: Score
    allow: bool


class MetricsResponse(_Record):
    """Recent decisions, oldest first."""

    recent_evaluations: list[RecentEvaluation]


class ErrorResponse(_Record):
    """The body of every 4xx and 5xx: what happened, and what to do. It never repeats the text that was sent."""

    error: str
    detail: str
