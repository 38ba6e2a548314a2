"""`/review`: the queue of answers that reviewers look at. What they say goes the way of `POST /api/v1/feedback`."""

from __future__ import annotations

import time
from collections import OrderedDict

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from app.store import examples, queue
from app.web.console.overview import Record
from app.web.console.parts import Console
from app.web.feedback import Review, publish
from app.web.identity import Identity, Right

SHOWN = 10
SPOKEN_S = 900.0
MOST_SPOKEN = 1000
"""A review needs some seconds through Kafka until the store knows it; so long its answer is not shown again."""


class Item(Record):
    """One answer that waits for a reviewer."""

    event_id: str
    example_id: str
    model_id: str
    domain: str
    violation_type: str
    compliance_score: float | None
    priority: int
    created_at: str
    prompt: str
    response: str


class Queue(Record):
    """The most urgent answers that wait; `more`: there are others."""

    items: list[Item]
    more: bool


class Spoken:
    """The events that were reviewed here of late."""

    def __init__(self) -> None:
        self._at: OrderedDict[str, float] = OrderedDict()

    def add(self, event_id: str) -> None:
        """Remember one."""
        self._at[event_id] = time.monotonic()
        while len(self._at) > MOST_SPOKEN:
            self._at.popitem(last=False)

    def all(self) -> set[str]:
        """Those that are not forgotten yet."""
        now = time.monotonic()
        return {event_id for event_id, at in self._at.items() if now - at < SPOKEN_S}


def add(app: FastAPI, console: Console) -> None:
    """Add the queue, as a page and as JSON, and the form."""
    may = Depends(console.guard.needs(Right.REVIEW))
    spoken = Spoken()

    def read(identity: Identity, limit: int, connection: Connection) -> Queue:
        found = queue.waiting(connection, identity.domains, limit + 1, spoken.all())
        stored = examples.get(connection, found[:limit])
        items = [
            Item(
                event_id=one.event_id or "",
                **{name: getattr(one, name) for name in Item.model_fields if name != "event_id"},
            )
            for one in (stored[example_id] for example_id in found[:limit] if example_id in stored)
        ]
        return Queue(items=items, more=len(found) > limit)

    @app.get("/review", response_class=HTMLResponse)
    async def page(request: Request, identity: Identity = may) -> HTMLResponse:
        """The queue as a page."""
        found = await console.read(lambda connection: read(identity, SHOWN, connection))
        return await console.page(request, identity, "review.html", {"q": found})

    @app.get("/api/v1/review", tags=["review"])
    async def queue_json(identity: Identity = may, limit: int = SHOWN) -> Queue:
        """Answers that wait for a reviewer, the most urgent first. A review goes to `POST /api/v1/feedback`."""
        return await console.read(lambda connection: read(identity, max(1, min(limit, 100)), connection))

    @app.post("/review", include_in_schema=False)
    async def review_form(request: Request, identity: Identity = may) -> Response:
        """A reviewer's word, from the page."""
        fields = await console.guard.form(request, identity)
        verdict = fields.get("verdict", "")
        try:
            review = Review(
                target_event_id=fields.get("event_id", ""),
                verdict=verdict,
                reviewer_id=identity.acting(fields.get("by")),
                corrected_response=fields.get("corrected_response") if verdict == "correct" else None,
            )
        except ValidationError as error:
            raise HTTPException(422, "; ".join(item["msg"] for item in error.errors())) from None
        receipt = await publish(console, identity, review)
        spoken.add(review.target_event_id)
        signed = "" if receipt.signed else " It is not signed, so a correction is no training target."
        return console.done("/review", f"Taken: {review.verdict.value}.{signed}")
