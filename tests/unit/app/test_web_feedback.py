"""What `POST /api/v1/feedback` takes, signs and refuses, before Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from agents.curation.signature import is_signed
from app import wiring
from app.roles import Role
from app.settings import Settings, load_settings
from app.web.api import create_web
from app.web.feedback import FeedbackIntake, Review
from app.workers import WorkerState

PATH = "/api/v1/feedback"
TOKEN = "reviewers-only"
CORRECTION = {
    "target_event_id": "e1",
    "verdict": "correct",
    "reviewer_id": "bob",
    "corrected_response": "Write to ada@example.org instead.",
}


def settings(folder: Path, token: str | None = TOKEN) -> Settings:
    given = {"FLYWHEEL_DATA_DIR": str(folder), "FLYWHEEL_DATABASE__URL": f"sqlite:///{folder / 'test.db'}"}
    return load_settings(given | ({} if token is None else {"FLYWHEEL_WEB__TOKEN": token}))


def test_a_review_is_scrubbed_and_then_signed(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    event = FeedbackIntake(configured).event(Review.model_validate(CORRECTION))
    assert event["corrected_response"] == "Write to [EMAIL] instead."
    assert is_signed(wiring.feedback_key(configured), event)
    # The router scrubs again, and must not break the signature.
    assert not wiring.scrubber(configured, "scrub").scrub_event(event)
    assert is_signed(wiring.feedback_key(configured), event)


def test_without_a_token_nobody_is_vouched_for(tmp_path: Path) -> None:
    configured = settings(tmp_path, token=None)
    event = FeedbackIntake(configured).event(Review.model_validate(CORRECTION))
    assert not is_signed(wiring.feedback_key(configured), event)


def test_a_given_id_makes_a_repeated_request_one_review(tmp_path: Path) -> None:
    intake = FeedbackIntake(settings(tmp_path))
    named = Review.model_validate(CORRECTION | {"feedback_id": "r1"})
    assert intake.event(named)["event_id"] == intake.event(named)["event_id"] == "r1"
    unnamed = Review.model_validate(CORRECTION)
    assert intake.event(unnamed)["event_id"] != intake.event(unnamed)["event_id"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (CORRECTION, 503, "the worker is starting"),  # well formed; no Kafka here
        (CORRECTION | {"corrected_response": None}, 422, "comes with a corrected_response"),
        (CORRECTION | {"corrected_response": "  "}, 422, "comes with a corrected_response"),
        (CORRECTION | {"verdict": "approve"}, 422, "no other verdict does"),
        (CORRECTION | {"verdict": "maybe"}, 422, "'approve', 'reject' or 'correct'"),
        (CORRECTION | {"target_event_id": " "}, 422, "at least 1 character"),
        (CORRECTION | {"reviewer_id": "b" * 300}, 422, "at most 256 characters"),
        (CORRECTION | {"signed": True}, 422, "Extra inputs are not permitted"),
        (CORRECTION | {"corrected_response": "x" * 600_000}, 413, "at most"),
    ],
)
async def test_what_is_refused_says_why(tmp_path: Path, body: dict[str, Any], status: int, named: str) -> None:
    configured = settings(tmp_path)
    transport = httpx.ASGITransport(app=create_web(configured, Role.ROUTE, WorkerState(configured, Role.ROUTE)))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
        answer = await http.post(PATH, json=body)
        assert answer.status_code == status
        assert named in answer.text
        stranger = await http.post(PATH, json=body, headers={"Authorization": "Bearer other"})
        assert stranger.status_code == 401
        streamed = await http.post(PATH, content=_stream())
        assert streamed.status_code == 411


async def _stream() -> Any:
    yield b"{}"
