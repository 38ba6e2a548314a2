"""Training examples: what curation makes of violations, triggers and human feedback."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from models.event import Classification, Identity


class ExampleStatus(StrEnum):
    """Where an example stands.

    `new` may enter a cycle; `used` has been in one that trained; `held_out` is kept for evaluation and never trained
    on; `retired` was approved by a human (nothing to mend); `excluded` was left out for good (its manifest or revision
    says why); `forgotten` has lost its text.
    """

    NEW = "new"
    USED = "used"
    HELD_OUT = "held_out"
    RETIRED = "retired"
    EXCLUDED = "excluded"
    FORGOTTEN = "forgotten"


class Lineage(BaseModel):
    """Where an example came from, so that an auditor can find the record again."""

    model_config = ConfigDict(frozen=True)

    topic: str
    partition: int
    offset: int
    trace_id: str | None = None
    trace_links: str | None = Field(
        None, description="of a followed event: traceparents of the application's span and of curation's, by commas"
    )


class Example(BaseModel):
    """One example in the store. `prompt` and `response` are empty once forgotten."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    example_id: str
    identity: Identity
    event_id: str | None
    classification: Classification
    lineage: Lineage
    domain: str
    model_id: str
    subject_token: str | None
    workload_id: str | None
    violation_type: str
    compliance_score: float | None
    prompt: str
    response: str
    corrected_response: str | None = None
    correction_signed: bool = False
    priority: int = 0
    status: ExampleStatus = ExampleStatus.NEW
    created_at: str = Field(description="RFC 3339, UTC")
