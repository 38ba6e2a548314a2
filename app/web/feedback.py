"""`POST /api/v1/feedback`: a reviewer's word on an earlier answer, through the same topic and router as every event.

A correction becomes a training target as it stands, so it must come from somebody who may say so: the endpoint signs
what it takes, but only where it asks its callers who they are. Where the web is open anybody on this machine could
speak; reviews are then taken unsigned, and a correction only raises its example's priority.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from agents.curation.signature import FIELD, sign
from app import wiring
from app.kafka import make_producer
from app.settings import Settings
from app.store import queue
from app.store.database import utc_now
from app.topics import AUDIT_EVENTS
from app.web.identity import Identity, Right
from models.event import Verdict
from otel.scrub import Scrubber

if TYPE_CHECKING:
    from app.web.console.parts import Console

SERVICE = "flywheel-feedback"
SEND_TIMEOUT_S = 20.0
MAX_BODY_BYTES = 512 * 1024
CONTENT_TYPE_HEADER = [("content-type", b"application/json")]

Reference = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Reviewer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256)]


class Review(BaseModel):
    """What a reviewer says. `feedback_id` makes a repeated request the same review; one is made up where it is absent.

    `reviewer_id` should be an account's name: an address would be masked like any other personal data. It is the
    caller's own where the token is a person's; others have to name somebody.
    """

    model_config = ConfigDict(extra="forbid")

    target_event_id: Reference
    verdict: Verdict
    reviewer_id: Reviewer | None = None
    corrected_response: Annotated[str, StringConstraints(strip_whitespace=True, max_length=65_536)] | None = None
    feedback_id: Reference | None = None

    @model_validator(mode="after")
    def _a_correction_corrects(self) -> Review:
        if (self.verdict is Verdict.CORRECT) != bool(self.corrected_response):
            raise ValueError("verdict `correct` comes with a corrected_response, and no other verdict does")
        return self


class Receipt(BaseModel):
    """The review's id once Kafka has it, and whether it was signed: unsigned corrections are no training targets."""

    event_id: str
    signed: bool


class FeedbackIntake:
    """Scrubs reviews, signs them and puts them on `otel-audit-events`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = None if settings.web.is_open else wiring.feedback_key(settings)
        self._counts: Counter[str] = Counter()
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> FeedbackIntake:
        self._producer = make_producer(self._settings, linger_ms=0, idempotent=False)
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await self._producer.stop()

    @cached_property
    def _scrubber(self) -> Scrubber:
        """Made with the first review: most workers get none."""
        return wiring.scrubber(self._settings, "scrub")

    def snapshot(self) -> dict[str, int]:
        """Reviews since the worker started, by verdict."""
        return dict(self._counts)

    def event(self, review: Review) -> dict[str, Any]:
        """The review as an event, scrubbed and then signed: what is signed is what curation will read."""
        said: dict[str, Any] = {
            "event_id": review.feedback_id or uuid.uuid4().hex,
            "event_type": "human_review",
            "source": "human_review",
            "timestamp": utc_now(),
            "target_event_id": review.target_event_id,
            "verdict": review.verdict.value,
            "reviewer_id": review.reviewer_id,
            "resource": {"service.name": SERVICE},
        }
        if review.corrected_response:
            said["corrected_response"] = review.corrected_response
        self._scrubber.scrub_event(said)
        if self._key is not None:
            said[FIELD] = sign(self._key, said)
        return said

    async def take(self, review: Review) -> Receipt:
        """Publish a review; returns once Kafka has it. Raises HTTPException 503 while it has not."""
        event = await asyncio.to_thread(self.event, review)
        if self._producer is None:
            raise HTTPException(503, "the worker is starting", {"Retry-After": "1"})
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._producer.send_and_wait(
                    AUDIT_EVENTS.name,
                    orjson.dumps(event),
                    key=event["target_event_id"].encode(),
                    headers=CONTENT_TYPE_HEADER,
                )
        except (KafkaError, TimeoutError) as error:
            message = f"Kafka does not take records now ({type(error).__name__}); send it again with a feedback_id"
            raise HTTPException(503, message, {"Retry-After": "5"}) from error
        self._counts[review.verdict.value] += 1
        return Receipt(event_id=event["event_id"], signed=FIELD in event)


def add_feedback(app: FastAPI, console: Console) -> None:
    """Add `POST /api/v1/feedback` to a worker's web."""
    may = Depends(console.guard.needs(Right.FEEDBACK))

    @app.post("/api/v1/feedback", dependencies=[may, Depends(_bounded)], status_code=202, tags=["review"])
    async def feedback(review: Review, identity: Identity = may) -> Receipt:
        """Take a reviewer's word on the answer of `target_event_id`."""
        return await publish(console, identity, review)


async def publish(console: Console, identity: Identity, review: Review) -> Receipt:
    """Take a review in the name of whoever speaks. Raises HTTPException.

    Who is limited to some data domains speaks only of what the store has in one of them; for the others the event need
    not have arrived yet.
    """
    if identity.person is not None:
        review = review.model_copy(update={"reviewer_id": identity.acting(review.reviewer_id)})
    elif review.reviewer_id is None:
        raise HTTPException(422, "reviewer_id is absent: name the reviewer")
    if not identity.sees_all:
        target = review.target_event_id
        domain = await console.read(lambda connection: queue.domain_of_event(connection, target))
        if domain is None or not identity.sees(domain):
            raise HTTPException(404, f"there is no answer {target!r} in your data domains")
    return await console.feedback.take(review)


def _bounded(request: Request) -> None:
    """Refuse a body before it is read: what announces no length, or too much."""
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal():
        raise HTTPException(411, "a review announces its length (Content-Length)")
    if int(announced[:20]) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a review has at most {MAX_BODY_BYTES} bytes; shorten the correction")
