"""Many verdicts at once, each in the audit log before it counts; and who is no judge of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Response
from loopback import serving

from app.embedded.ports import free_port
from models.audit import AuditEntry
from models.evaluation_api import (
    HASH_MISMATCH,
    EvaluateBatchRequest,
    EvaluateBatchResponse,
    EvaluateRequest,
    Evaluation,
)
from policies.clients import AuditUnavailable, PolicyEngineClient, PolicyEngineUnavailable
from policies.clients.audited import evaluate_audited

HASH = "cdd01ef066bc6cf2"
KEY = b"a key of the tests, 32 bytes long"
SECRET = "the patient in room twelve"
LIMIT = 40


def verdict(request: EvaluateRequest) -> Evaluation:
    """`other` speaks for an engine with another constitution; everything else is fine."""
    other = request.content == "other"
    return Evaluation(
        allow=not other,
        confidence_score=0.0 if other else 0.99,
        violations=[HASH_MISMATCH] if other else [],
        reason="as asked",
        policy_version="1",
        decision_id=f"d-{request.content[:4]}",
        constitution_digest="c" * 64,
    )


class Engine:
    """Refuses texts over a limit, as the real one does: a batch for one of its items."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.post("/api/v1/evaluate")(self.evaluate)
        self.app.post("/api/v1/evaluate/batch")(self.evaluate_batch)

    async def evaluate(self, body: EvaluateRequest) -> Response:
        return self._answer([body], verdict(body).model_dump_json())

    async def evaluate_batch(self, body: EvaluateBatchRequest) -> Response:
        answer = EvaluateBatchResponse(results=[verdict(item) for item in body.items])
        return self._answer(body.items, answer.model_dump_json())

    def _answer(self, items: list[EvaluateRequest], body: str) -> Response:
        too_long = any(len(item.content) > LIMIT for item in items)
        return Response(status_code=422) if too_long else Response(body, media_type="application/json")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Engine().app) as address:
        yield address


class Log:
    """An audit sink that keeps what it is given, until it is to fail."""

    def __init__(self, fails_after: int = 10_000) -> None:
        self.entries: list[AuditEntry] = []
        self._fails_after = fails_after

    async def __call__(self, entry: AuditEntry) -> None:
        if len(self.entries) >= self._fails_after:
            raise AuditUnavailable("gone")
        self.entries.append(entry)


def client_of(address: str, log: Log) -> PolicyEngineClient:
    return PolicyEngineClient(address, HASH, timeout_s=5.0, audit=log, digest_key=KEY)


def texts(count: int) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{number:04}", {"prompt": SECRET, "cycle_id": "c-1"}) for number in range(count)]


async def test_every_verdict_has_its_entry(url: str) -> None:
    log = Log()
    async with client_of(url, log) as client:
        found = await evaluate_audited(client, texts(150))
        assert await evaluate_audited(client, []) == []
    assert [item.decision_id for item in found] == [f"d-{number:04}" for number in range(150)]
    told = sorted(entry.model_extra["decision_id"] for entry in log.entries if entry.model_extra)
    assert told == [item.decision_id for item in found]
    assert {entry.cycle_id for entry in log.entries} == {"c-1"}
    assert SECRET not in json.dumps([entry.model_dump() for entry in log.entries])


async def test_a_text_that_is_refused_does_not_hold_up_the_others(url: str) -> None:
    log = Log()
    async with client_of(url, log) as client:
        found = await evaluate_audited(client, [("fine", {}), ("x" * 50, {}), ("\ud800", {}), ("good", {})])
    assert [item.allow for item in found] == [True, False, False, True]
    assert [item.violations for item in found] == [[], ["validation_error"], ["validation_error"], []]
    assert sorted(len(entry.violations) for entry in log.entries) == [0, 0, 1, 1]


@pytest.mark.parametrize("away", ["nobody there", "another constitution"])
async def test_no_verdict_is_told_once_and_raised(url: str, away: str) -> None:
    log = Log()
    address = f"http://127.0.0.1:{free_port()}" if away == "nobody there" else url
    content = "other" if away == "another constitution" else "fine"
    async with client_of(address, log) as client:
        with pytest.raises(PolicyEngineUnavailable):
            await evaluate_audited(client, [*texts(3), (content, {})])
        (entry,) = log.entries
        assert await client.validate_constitutional(content) == (False, 0.0, ["validation_error"])
    assert (entry.violations, entry.compliance_score) == (["validation_error"], 0.0)
    assert entry.context["texts"] == 4
    assert len(log.entries) == 2


@pytest.mark.parametrize("kept", [0, 5])
async def test_verdicts_that_cannot_all_be_audited_do_not_count(url: str, kept: int) -> None:
    async with client_of(url, Log(fails_after=kept)) as client:
        with pytest.raises(PolicyEngineUnavailable, match="could not be audited"):
            await evaluate_audited(client, texts(10))


async def test_no_verdict_and_no_audit_is_still_no_verdict() -> None:
    async with client_of(f"http://127.0.0.1:{free_port()}", Log(fails_after=0)) as client:
        with pytest.raises(PolicyEngineUnavailable, match="did not answer"):
            await evaluate_audited(client, texts(2))
