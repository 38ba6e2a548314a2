"""The HTTP clients against services that work, that are gone, that are slow, and that answer nonsense."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Header, Request
from loopback import serving

from models.audit import AuditEntry, AuditReceipt
from models.evaluation_api import EvaluateBatchRequest, EvaluateBatchResponse, EvaluateRequest, Evaluation
from policies.audit.config import AuditConfig
from policies.audit.service import create_audit_app
from policies.clients import (
    AuditClient,
    AuditConflict,
    AuditRefused,
    AuditUnavailable,
    PolicyEngineClient,
    PolicyEngineRefused,
    PolicyEngineUnavailable,
    SyncAuditClient,
    is_compliant,
)

KEY = b"a key of the tests, 32 bytes long"
HASH = "cdd01ef066bc6cf2"
TOKEN = "a token"
SECRET = "the patient in room twelve"
NO_VERDICT = (False, 0.0, ["validation_error"])


@asynccontextmanager
async def answering(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A bare TCP server: reads a request's head, then does whatever the test wants."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


def saying(body: str | bytes, status: str = "200 OK") -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    data = body.encode() if isinstance(body, str) else body

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()

    return answer


async def hanging_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def dripping(writer: asyncio.StreamWriter) -> None:
    """Never a pause long enough for a timeout between two reads."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01\x02 nonsense\r\n\r\n")
    await writer.drain()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


VERDICT: dict[str, Any] = {
    "allow": True,
    "confidence_score": 0.99,
    "violations": [],
    "reason": "nothing found",
    "policy_version": "1",
    "decision_id": "d-1",
    "constitution_digest": "c" * 64,
    "scores": {"request_harm": 0.1},
}


def judge(request: EvaluateRequest) -> Evaluation:
    """Scores are what the text says they are, so that a test sees which verdict belongs to which text."""
    harmful = "harm" in request.content
    return Evaluation(
        allow=not harmful,
        confidence_score=0.1 if harmful else float(request.context["score"]),  # type: ignore[arg-type]
        violations=["harmful_content"] if harmful else [],
        reason="as asked",
        policy_version="1",
        decision_id=f"d-{request.content}",
        constitution_digest="c" * 64,
    )


class Judge:
    """The policy engine's contract over HTTP, with a memory of how it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.together = 0
        self.most_together = 0
        self.asked: list[dict[str, Any]] = []
        self.connections: set[tuple[str, int]] = set()
        self.app = FastAPI()
        self.app.post("/api/v1/evaluate")(self.evaluate)
        self.app.post("/api/v1/evaluate/batch")(self.evaluate_batch)

    async def evaluate(self, body: EvaluateRequest, request: Request, authorization: str = Header()) -> Evaluation:
        assert authorization == f"Bearer {TOKEN}"
        assert request.client is not None
        self.connections.add((request.client.host, request.client.port))
        self.asked.append(json.loads(await request.body()))
        return judge(body)

    async def evaluate_batch(self, body: EvaluateBatchRequest) -> EvaluateBatchResponse:
        self.batches.append(len(body.items))
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await asyncio.sleep(0.02)
        self.together -= 1
        return EvaluateBatchResponse(results=[judge(item) for item in body.items])


@pytest.fixture
def engine() -> Judge:
    return Judge()


@pytest.fixture
def engine_url(engine: Judge) -> Iterator[str]:
    with serving(engine.app) as url:
        yield url


class Log:
    """An audit sink that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def __call__(self, entry: AuditEntry) -> None:
        self.entries.append(entry)


async def test_an_evaluation_is_asked_as_the_contract_says(engine: Judge, engine_url: str) -> None:
    async with PolicyEngineClient(engine_url, HASH, token=TOKEN) as client:
        found = await client.evaluate("hello", {"prompt": "Hi", "iteration": 1, "score": 0.97})
        for _ in range(5):
            await client.evaluate("hello", {"score": 0.97})
    assert (found.allow, found.confidence_score, found.decision_id) == (True, 0.97, "d-hello")
    assert engine.asked[0] == {
        "action": "constitutional_evaluation",
        "content": "hello",
        "context": {"prompt": "Hi", "iteration": 1, "score": 0.97},
        "constitutional_hash": HASH,
    }
    assert len(engine.connections) == 1, "the connection is kept"


async def test_many_keep_their_order_in_bounded_batches(engine: Judge, engine_url: str) -> None:
    async with PolicyEngineClient(engine_url, HASH, concurrency=2) as client:
        found = await client.evaluate_many([(f"t{number}", {"score": 0.5}) for number in range(300)])
        assert await client.evaluate_many([]) == []
    assert [item.decision_id for item in found] == [f"d-t{number}" for number in range(300)]
    assert sorted(engine.batches) == [44, 64, 64, 64, 64]
    assert engine.most_together == 2


@pytest.mark.parametrize(
    ("content", "score", "expected"),
    [
        ("fine", 0.95, (True, 0.95, [])),
        ("fine", 0.949, (False, 0.949, [])),
        ("harm", 0.99, (False, 0.1, ["harmful_content"])),
    ],
)
async def test_compliant_is_allowed_and_at_the_threshold(
    engine_url: str,
    content: str,
    score: float,
    expected: tuple[bool, float, list[str]],
) -> None:
    log = Log()
    client = PolicyEngineClient(engine_url, HASH, token=TOKEN, audit=log, digest_key=KEY)
    async with client:
        assert await client.validate_constitutional(content, {"score": score, "model_id": "m"}) == expected
    (entry,) = log.entries
    assert entry.event_type == "constitutional_validation"
    assert (entry.compliance_score, entry.violations, entry.model_id) == (expected[1], expected[2], "m")
    assert entry.model_extra is not None
    assert entry.model_extra["decision_id"] == f"d-{content}"


def test_a_score_without_permission_is_not_compliant() -> None:
    refused = Evaluation.model_validate({**VERDICT, "allow": False})
    assert not is_compliant(refused, 0.5)


def changed(**fields: object) -> str:
    return json.dumps({**VERDICT, **fields})


NONSENSE = {
    "hangs up": hanging_up,
    "silent": silent,
    "dripping": dripping,
    "no HTTP": no_http,
    "empty": saying(""),
    "no JSON": saying("<html>welcome</html>"),
    "not an object": saying("[1]"),
    "null": saying("null"),
    "cut short": saying(json.dumps(VERDICT)[:-5]),
    "no UTF-8": saying(b'{"allow": true, "reason": "\xff\xfe"}'),
    "NaN": saying(changed(confidence_score=float("nan"))),
    "infinite": saying(changed(confidence_score=float("inf"))),
    "above one": saying(changed(confidence_score=1.01)),
    "below zero": saying(changed(confidence_score=-0.1)),
    "score as text": saying(changed(confidence_score="0.99")),
    "score as bool": saying(changed(confidence_score=True)),
    "allow as text": saying(changed(allow="true")),
    "allow as number": saying(changed(allow=1)),
    "no allow": saying(json.dumps({name: value for name, value in VERDICT.items() if name != "allow"})),
    "violations as text": saying(changed(violations="harmful_content")),
    "violations of numbers": saying(changed(violations=[1])),
    "deep": saying("[" * 100_000),
    "500": saying(changed(), "500 Internal Server Error"),
    "503": saying(changed(), "503 Service Unavailable"),
    "401": saying(changed(), "401 Unauthorized"),
    "429": saying(changed(), "429 Too Many Requests"),
    "redirect": saying(changed(), "302 Found"),
    "204": saying("", "204 No Content"),
    "422": saying(changed(), "422 Unprocessable Entity"),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_is_a_validation_error_with_an_audit_entry(
    nonsense: Callable[[asyncio.StreamWriter], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log()
    async with answering(nonsense) as url:
        client = PolicyEngineClient(url, HASH, timeout_s=0.3, batch_timeout_s=0.3, audit=log, digest_key=KEY)
        async with client:
            started = time.monotonic()
            assert await client.validate_constitutional(SECRET, {"prompt": SECRET}) == NO_VERDICT
            assert time.monotonic() - started < 10
            with pytest.raises(PolicyEngineUnavailable):
                await client.evaluate(SECRET)
            with pytest.raises(PolicyEngineUnavailable) as failure:
                await client.evaluate_many([(SECRET, {})])
    (entry,) = log.entries
    assert entry.violations == ["validation_error"]
    assert entry.compliance_score == 0.0
    assert SECRET not in entry.model_dump_json()
    assert SECRET not in caplog.text
    assert SECRET not in "".join(traceback.format_exception(failure.value))


async def test_a_verdict_is_accepted_from_the_same_bare_server() -> None:
    """Else the test above would prove nothing."""
    async with answering(saying(changed())) as url, PolicyEngineClient(url, HASH) as client:
        assert await client.validate_constitutional("text") == (True, 0.99, [])


@pytest.mark.parametrize("status", ["400 Bad Request", "409 Conflict", "413 Too Large", "422 Unprocessable"])
async def test_a_refusal_is_told_apart(status: str) -> None:
    async with answering(saying("{}", status)) as url, PolicyEngineClient(url, HASH) as client:
        with pytest.raises(PolicyEngineRefused) as refusal:
            await client.evaluate("text")
    assert refusal.value.status == int(status[:3])


async def test_a_batch_with_too_few_verdicts_is_no_verdict() -> None:
    body = json.dumps({"results": [VERDICT]})
    async with answering(saying(body)) as url, PolicyEngineClient(url, HASH) as client:
        with pytest.raises(PolicyEngineUnavailable, match="1 verdicts to 2 texts"):
            await client.evaluate_many([("a", {}), ("b", {})])


async def test_an_engine_that_is_killed_and_comes_back(engine: Judge) -> None:
    log = Log()
    port = free_port()
    client = PolicyEngineClient(f"http://127.0.0.1:{port}", HASH, token=TOKEN, audit=log, digest_key=KEY)
    async with client:
        assert await client.validate_constitutional("fine", {"score": 1.0}) == NO_VERDICT
        server = uvicorn.Server(uvicorn.Config(engine.app, port=port, log_config=None))
        task = asyncio.create_task(server.serve())
        async with asyncio.timeout(30):
            while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
                await asyncio.sleep(0.01)
        assert await client.validate_constitutional("fine", {"score": 1.0}) == (True, 1.0, [])
        server.should_exit = True
        await task
        assert await client.validate_constitutional("fine", {"score": 1.0}) == NO_VERDICT
    assert [entry.violations for entry in log.entries] == [["validation_error"], [], ["validation_error"]]
    assert len({entry.entry_id for entry in log.entries}) == 3


@pytest.mark.parametrize(
    "context", [{"x": object()}, {"prompt": 3}, {"x": "\ud800"}, {"model_id": "a\x00b", "prompt": 3}]
)
async def test_what_cannot_be_asked_is_a_validation_error_too(engine_url: str, context: dict[str, Any]) -> None:
    log = Log()
    async with PolicyEngineClient(engine_url, HASH, token=TOKEN, audit=log, digest_key=KEY) as client:
        assert await client.validate_constitutional("harm", context) == NO_VERDICT
    assert [entry.violations for entry in log.entries] == [["validation_error"]]


async def test_a_verdict_that_cannot_be_audited_does_not_count(engine_url: str) -> None:
    async def broken(_entry: AuditEntry) -> None:
        raise AuditUnavailable("gone")

    client = PolicyEngineClient(engine_url, HASH, token=TOKEN, audit=broken, digest_key=KEY)
    async with client:
        assert await client.validate_constitutional("fine", {"score": 1.0}) == NO_VERDICT


async def test_cancellation_is_not_swallowed() -> None:
    async with answering(silent) as url, PolicyEngineClient(url, HASH) as client:
        task = asyncio.create_task(client.validate_constitutional("text"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_auditing_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="digest key"):
        PolicyEngineClient("http://127.0.0.1", HASH, audit=Log())
    with pytest.raises(ValueError, match=r"threshold is 95"):
        PolicyEngineClient("http://127.0.0.1", HASH, threshold=95)


@pytest.fixture
def audit_url(tmp_path: Path) -> Iterator[str]:
    with serving(create_audit_app(AuditConfig(f"sqlite:///{tmp_path}/audit.db", KEY, token=TOKEN))) as url:
        yield url


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(url)


def entry(entry_id: str | None = None, **fields: Any) -> AuditEntry:
    given: dict[str, Any] = {"event_type": "test", "constitutional_hash": HASH, **fields}
    return AuditEntry(entry_id=entry_id, **given)


async def test_entries_are_logged_once_however_often_they_are_sent(audit_url: str) -> None:
    async with AuditClient(audit_url, TOKEN) as client:
        first = await client.log(entry("one", context={"prompt": SECRET, "odd": "\ud800"}))
        assert await client.log(entry("one", context={"prompt": SECRET, "odd": "\ud800"})) == first
        with SyncAuditClient(audit_url, TOKEN) as same:
            assert same.log(entry("one", context={"prompt": SECRET, "odd": "\ud800"})) == first
        with pytest.raises(AuditConflict) as conflict:
            await client.log(entry("one", model_id="other"))
        assert conflict.value.status == 409
        assert (await client.log(entry())).id
    assert (await get(f"{audit_url}/api/v1/verify")).json()["entries"] == 2


@pytest.mark.parametrize("fields", [{"timestamp": "soon"}, {"context": {"x": float("nan")}}, {"extra": object()}])
async def test_an_entry_that_can_never_be_taken_is_refused(audit_url: str, fields: dict[str, Any]) -> None:
    async with AuditClient(audit_url, TOKEN) as client:
        with pytest.raises(AuditRefused, match="'one'") as refusal:
            await client.log(entry("one", **fields))
    with SyncAuditClient(audit_url, TOKEN) as same, pytest.raises(AuditRefused):
        same.log(entry("one", **fields))
    assert refusal.value.status == 422


async def test_a_wrong_token_loses_no_entry(audit_url: str) -> None:
    async with AuditClient(audit_url, "wrong") as client:
        with pytest.raises(AuditUnavailable, match="check the token"):
            await client.log(entry("one"))


RECEIPT = json.dumps({"id": "one", "digest": "a" * 64})
NO_RECEIPTS = {
    "hangs up": hanging_up,
    "silent": silent,
    "dripping": dripping,
    "no HTTP": no_http,
    "no JSON": saying("ok"),
    "other entry": saying(json.dumps({"id": "two", "digest": "a" * 64})),
    "no digest": saying(json.dumps({"id": "one"})),
    "short digest": saying(json.dumps({"id": "one", "digest": "a"})),
    "500": saying(RECEIPT, "500 Internal Server Error"),
    "503": saying(RECEIPT, "503 Service Unavailable"),
    "404": saying(RECEIPT, "404 Not Found"),
    "429": saying(RECEIPT, "429 Too Many Requests"),
    "202": saying(RECEIPT, "202 Accepted"),
}


@pytest.mark.parametrize("nonsense", NO_RECEIPTS.values(), ids=NO_RECEIPTS)
async def test_no_receipt_means_send_again(nonsense: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
    async with answering(nonsense) as url, AuditClient(url, timeout_s=0.3) as client:
        with pytest.raises(AuditUnavailable):
            await client.log(entry("one"))
    async with AuditClient(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(AuditUnavailable, match="is it running"):
            await client.log(entry("one"))


async def test_a_receipt_is_accepted_from_the_same_bare_server() -> None:
    async with answering(saying(RECEIPT)) as url, AuditClient(url) as client:
        assert await client.log(entry("one")) == AuditReceipt(id="one", digest="a" * 64)


async def test_a_validation_ends_in_the_real_audit_log(engine_url: str, audit_url: str) -> None:
    async with AuditClient(audit_url, TOKEN) as audit:
        client = PolicyEngineClient(engine_url, HASH, token=TOKEN, audit=audit.log, digest_key=KEY)
        async with client:
            await client.validate_constitutional("harm", {"prompt": SECRET, "model_id": "m", "domain": "health"})
        gone = f"http://127.0.0.1:{free_port()}"
        async with PolicyEngineClient(gone, HASH, audit=audit.log, digest_key=KEY) as client:
            await client.validate_constitutional(SECRET, {"model_id": "m"})
    listed = (await get(f"{audit_url}/api/v1/violations/recent")).json()
    assert [(item["type"], item["model_id"]) for item in listed] == [
        ("harmful_content", "m"),
        ("validation_error", "m"),
    ]
    stored = await get(f"{audit_url}/api/v1/entries?domain=health")
    assert len(stored.json()) == 1
    assert SECRET not in stored.text


async def test_verdicts_of_a_batch_are_recorded_like_validations(engine_url: str) -> None:
    log = Log()
    client = PolicyEngineClient(engine_url, HASH, token=TOKEN, audit=log, digest_key=KEY)
    items = [("fine", {"score": 1.0, "model_id": "m", "prompt": SECRET}), ("harm", {"score": 1.0, "model_id": "m"})]
    async with client:
        found = await client.evaluate_many(items)
        assert log.entries == []
        for (content, context), evaluation in zip(items, found, strict=True):
            await client.record(content, context, evaluation)
        await client.validate_constitutional(*items[0])
    assert [entry.violations for entry in log.entries] == [[], ["harmful_content"], []]
    recorded, _, validated = [entry.model_dump(exclude={"entry_id", "timestamp"}) for entry in log.entries]
    assert recorded == validated
    assert SECRET not in log.entries[0].model_dump_json()
