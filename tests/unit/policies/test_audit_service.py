"""The audit engine over HTTP, served by uvicorn on a loopback port."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback import serving

from policies.audit.config import AuditConfig, AuditConfigError
from policies.audit.engine import make_engine
from policies.audit.service import create_audit_app
from policies.audit.store import AuditStore

KEY = b"a key of the tests, 32 bytes long"
HASH = "cdd01ef066bc6cf2"
TOKEN = "writers only"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/audit.db"


@pytest.fixture
def base_url(database: str) -> Iterator[str]:
    with serving(create_audit_app(AuditConfig(database, KEY, token=TOKEN, max_body_bytes=20_000))) as url:
        yield url


@pytest.fixture
def client(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, headers=BEARER, trust_env=False, timeout=20) as made:
        yield made


def validation(entry_id: str, *violations: object, **fields: object) -> dict[str, Any]:
    return {
        "entry_id": entry_id,
        "event_type": "constitutional_validation",
        "constitutional_hash": HASH,
        "compliance_score": 0.4 if violations else 1.0,
        "violations": list(violations),
        "context": {},
        "timestamp": "2025-01-31T12:00:00Z",
        "model_id": "m",
        **fields,
    }


def write(client: httpx.Client, *entries: dict[str, Any]) -> list[dict[str, Any]]:
    answers = [client.post("/api/v1/log", json=item) for item in entries]
    assert [answer.status_code for answer in answers] == [200] * len(entries)
    return [answer.json() for answer in answers]


def test_an_entry_gets_a_receipt_and_the_same_again(client: httpx.Client) -> None:
    first, again = write(client, validation("one"), validation("one"))
    assert first == again
    assert first["id"] == "one"
    assert client.get("/api/v1/verify").json() == {
        "ok": True,
        "entries": 1,
        "head": {"seq": 1, "digest": first["digest"]},
        "fault": None,
        "anchor": None,
        "sealed_through": None,
        "unsealed": None,
        "checkpoint_fault": None,
    }


def test_other_content_under_the_same_id_is_409(client: httpx.Client) -> None:
    write(client, validation("one"))
    answer = client.post("/api/v1/log", json=validation("one", "harmful_content"))
    assert answer.status_code == 409
    assert "'one'" in answer.json()["detail"]


def test_an_entry_without_id_is_given_one(client: httpx.Client) -> None:
    bare = {"event_type": "anything", "constitutional_hash": HASH}
    first, second = write(client, bare, bare)
    assert first["id"] != second["id"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
def test_writing_needs_the_token(base_url: str, headers: dict[str, str]) -> None:
    answer = httpx.post(f"{base_url}/api/v1/log", json=validation("one"), headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert httpx.get(f"{base_url}/api/v1/verify", trust_env=False).json()["entries"] == 0


def test_reading_needs_a_token_where_one_is_set(database: str) -> None:
    config = AuditConfig(database, KEY, token=TOKEN, read_token="readers")
    with serving(create_audit_app(config)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        for path in ("violations/recent", "optimizations/recent", "entries", "verify"):
            assert client.get(f"/api/v1/{path}").status_code == 401
            for token in ("readers", TOKEN):
                answer = client.get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 200
        answer = client.post("/api/v1/log", json=validation("one"), headers={"Authorization": "Bearer readers"})
        assert answer.status_code == 401


SECRET = "the patient in room twelve"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 422),
        (b"[]", 422),
        (b"\xff\xfe", 422),
        (b"[" * 15_000, 422),
        (b"", 422),
        (b"9" * 5000, 422),
        (json.dumps({"event_type": "x", "content": SECRET}).encode(), 422),
        (json.dumps({**validation("one"), "compliance_score": SECRET}).encode(), 422),
        (json.dumps({**validation("one"), "compliance_score": "0.9"}).encode(), 422),
        (json.dumps({**validation("one"), "compliance_score": float("nan")}).encode(), 422),
        (json.dumps({**validation("one"), "compliance_score": 1.5}).encode(), 422),
        (json.dumps({**validation("one"), "context": {"deep": float("inf")}}).encode(), 422),
        (json.dumps({**validation("one"), "violations": 3}).encode(), 422),
        (json.dumps({**validation("one"), "violations": [None]}).encode(), 422),
        (json.dumps({**validation("one"), "timestamp": "now"}).encode(), 422),
        (json.dumps({**validation("one"), "timestamp": 1e300}).encode(), 422),
        (json.dumps({**validation("a\x00b")}).encode(), 422),
        (json.dumps({**validation("a" * 257)}).encode(), 422),
        (json.dumps({**validation("one"), "content": "x" * 20_000}).encode(), 413),
    ],
)
def test_what_is_no_entry_is_refused_without_repeating_it(client: httpx.Client, body: bytes, status: int) -> None:
    answer = client.post("/api/v1/log", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert isinstance(answer.json()["detail"], str)
    assert SECRET not in answer.text
    assert client.get("/api/v1/verify").json()["entries"] == 0


def test_a_body_that_hides_its_length_is_limited_too(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"event_type": "'
        for _ in range(100):
            yield b"x" * 1000

    answer = client.post("/api/v1/log", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_event_text_is_nowhere_in_the_answers_or_the_files(client: httpx.Client, tmp_path: Path) -> None:
    body = json.dumps(validation("one", "harmful_content", content=SECRET, context={"prompt": SECRET, "n": "\ud800"}))
    answer = client.post("/api/v1/log", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    found = client.get("/api/v1/entries")
    assert found.json()[0]["body"]["context"]["n"] == "\ud800"
    assert SECRET not in found.text
    for file in tmp_path.iterdir():
        assert SECRET.encode() not in file.read_bytes()


def test_violations_are_listed_once_each_by_cursor(client: httpx.Client) -> None:
    write(
        client,
        validation("a", "harmful_content", {"type": "bias_detected", "severity": "high"}),
        validation("b"),
        {**validation("c", "harmful_content"), "event_type": "something_else"},
        validation("d", "privacy_violation", model_id="n"),
    )
    everything = client.get("/api/v1/violations/recent", params={"after": 0})
    assert everything.json() == [
        {"id": "a:0", "type": "harmful_content", "severity": "unknown", "model_id": "m"},
        {"id": "a:1", "type": "bias_detected", "severity": "high", "model_id": "m"},
        {"id": "d:0", "type": "privacy_violation", "severity": "unknown", "model_id": "n"},
    ]
    assert everything.headers["X-Next-Cursor"] == "4"
    assert client.get("/api/v1/violations/recent").json() == everything.json()
    assert [item["id"] for item in client.get("/api/v1/violations/recent?limit=1").json()] == ["d:0"]
    seen, cursor = [], "0"
    while page := (answer := client.get("/api/v1/violations/recent", params={"after": cursor, "limit": 1})).json():
        seen += page
        cursor = answer.headers["X-Next-Cursor"]
    assert seen == everything.json()
    assert answer.headers["X-Next-Cursor"] == cursor == "4"


def test_finished_cycles_are_listed(client: httpx.Client) -> None:
    cycle = {"event_type": "optimization_cycle", "constitutional_hash": HASH, "trigger_type": "count"}
    write(
        client,
        {**cycle, "entry_id": "opened"},
        {**cycle, "entry_id": "promoted", "model_type": "causal-lm", "success": True},
        {**cycle, "entry_id": "failed", "context": {"model_type": "causal-lm", "success": False}},
    )
    answer = client.get("/api/v1/optimizations/recent?after=0")
    assert answer.json() == [
        {"id": "promoted", "trigger_type": "count", "model_type": "causal-lm", "success": True},
        {"id": "failed", "trigger_type": "count", "model_type": "causal-lm", "success": False},
    ]
    assert answer.headers["X-Next-Cursor"] == "3"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"event_type": "other"}, ["d"]),
        ({"model_id": "n"}, ["b"]),
        ({"cycle_id": "cycle-1"}, ["c"]),
        ({"domain": "health"}, ["a", "c"]),
        ({"since": "2025-01-31T12:00:00Z"}, ["c", "d"]),
        ({"until": "2025-01-31T12:00:00Z"}, ["a", "b"]),
        ({"since": "2025-01-31T13:00:00+02:00", "until": "2025-01-31T12:00:00Z"}, ["b"]),
        ({"after": 1, "limit": 2}, ["b", "c"]),
        ({"domain": "health", "after": 1}, ["c"]),
        ({"model_id": "n' OR '1'='1"}, []),
    ],
)
def test_search(client: httpx.Client, query: dict[str, str], expected: list[str]) -> None:
    write(
        client,
        validation("a", domain="health", timestamp="2025-01-31T10:00:00Z"),
        validation("b", model_id="n", timestamp="2025-01-31T11:00:00Z"),
        validation("c", domain="health", cycle_id="cycle-1"),
        {**validation("d"), "event_type": "other"},
    )
    answer = client.get("/api/v1/entries", params=query)
    assert [item["id"] for item in answer.json()] == expected
    if expected:
        assert answer.headers["X-Next-Cursor"] == str(answer.json()[-1]["seq"])


@pytest.mark.parametrize("query", ["after=-1", "after=x", f"after={2**63}", "limit=0", "limit=1001"])
def test_cursors_and_limits_out_of_range_are_refused(client: httpx.Client, query: str) -> None:
    assert client.get(f"/api/v1/violations/recent?{query}").status_code == 422


def test_health_and_metrics(client: httpx.Client) -> None:
    write(client, validation("one"))
    client.post("/api/v1/log", json=validation("one", "other"))
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/health/ready").json() == {"status": "ok"}
    text = client.get("/metrics").text
    assert 'audit_writes_total{outcome="written"} 1.0' in text
    assert 'audit_writes_total{outcome="conflict"} 1.0' in text


def test_without_its_database_it_lives_but_is_not_ready(client: httpx.Client, database: str) -> None:
    engine = make_engine(database)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_head RENAME TO gone")
    engine.dispose()
    assert client.get("/health/live").status_code == 200
    ready = client.get("/health/ready")
    refused = client.post("/api/v1/log", json=validation("one"))
    for answer in (ready, refused):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"


async def test_many_clients_at_once_keep_one_chain(base_url: str) -> None:
    async with httpx.AsyncClient(base_url=base_url, headers=BEARER, trust_env=False, timeout=60) as client:

        async def write_some(writer: int) -> list[str]:
            answers = [await client.post("/api/v1/log", json=validation(f"{writer}-{n}")) for n in range(25)]
            return [answer.json()["digest"] for answer in answers]

        digests = [digest for some in await asyncio.gather(*(write_some(n) for n in range(8))) for digest in some]
        report = (await client.get("/api/v1/verify")).json()
    assert len(set(digests)) == 200
    assert report["ok"]
    assert report["entries"] == 200


SERVICE = """
import sys
from policies.audit.config import AuditConfig
from policies.audit.service import run
run(AuditConfig(sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[4]), "127.0.0.1", int(sys.argv[3]))
"""


async def test_every_acknowledged_entry_survives_kill_9(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVICE, database, KEY.hex(), str(port), TOKEN)
    acknowledged: dict[str, str] = {}
    enough = asyncio.Event()
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=BEARER, trust_env=False, timeout=20
        ) as client:
            await wait_until_ready(client)

            async def write_until_it_dies(writer: int) -> None:
                for number in range(100_000):
                    answer = await client.post("/api/v1/log", json=validation(f"{writer}-{number}"))
                    acknowledged[answer.json()["id"]] = answer.json()["digest"]
                    if len(acknowledged) == 200:
                        enough.set()

            writers = [asyncio.ensure_future(write_until_it_dies(writer)) for writer in range(8)]
            async with asyncio.timeout(60):
                await enough.wait()
            process.kill()
            results = await asyncio.gather(*writers, return_exceptions=True)
        assert all(isinstance(result, httpx.TransportError) for result in results)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    engine = make_engine(database)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT entry_id, digest FROM audit_entries").all()
    kept = {row.entry_id: row.digest for row in rows}
    assert acknowledged.items() <= kept.items()
    assert AuditStore(engine, KEY).verify().ok
    engine.dispose()


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await client.get("/health/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"digest_key": b"short"}, "5 bytes"),
        ({"token": ""}, "token is empty"),
        ({"read_token": ""}, "read_token is empty"),
        ({"queue_entries": 0}, "queue_entries is 0"),
    ],
)
def test_an_unsafe_configuration_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditConfigError, match=message):
        AuditConfig(**{"database_url": "sqlite:///x", "digest_key": KEY, "token": TOKEN, **fields})


def test_secrets_are_not_in_the_configuration_as_text() -> None:
    shown = repr(AuditConfig("postgresql://u:hidden@h/d", KEY, token="hidden", read_token="hidden"))
    assert "hidden" not in shown
    assert "tests" not in shown


def test_the_openapi_document_tells_of_the_door(client: httpx.Client) -> None:
    """Entries are served before FastAPI sees them; what it tells of them must be what happens."""
    document = client.get("/openapi.json").json()
    told = document["paths"]["/api/v1/log"]["post"]
    schema = told["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/AuditEntry"}
    answers = told["responses"]
    assert answers["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/AuditReceipt"}
    assert told["security"] == [{"HTTPBearer": []}]
    assert {"401", "409", "413", "422", "503"} <= set(answers)
    receipt = client.post("/api/v1/log", json=validation("one"))
    assert receipt.headers["content-type"] == "application/json"
    assert set(receipt.json()) == set(document["components"]["schemas"]["AuditReceipt"]["properties"])
    assert client.get("/api/v1/log").status_code == 405


def test_the_declared_route_asks_for_the_token_too(database: str) -> None:
    """Should somebody serve it without the door."""
    app = create_audit_app(AuditConfig(database, KEY, TOKEN))
    app.user_middleware.clear()
    with serving(app) as url:
        for headers, status in (({}, 401), (BEARER, 200)):
            answer = httpx.post(f"{url}/api/v1/log", json=validation("one"), headers=headers, trust_env=False)
            assert answer.status_code == status


@pytest.mark.parametrize(
    ("name", "text"), [("until", "0001-01-01T00:00:00+23:59"), ("since", "9999-12-31T23:59:59-23:59")]
)
def test_a_time_outside_the_calendar_in_utc_is_refused(client: httpx.Client, name: str, text: str) -> None:
    answer = client.get("/api/v1/entries", params={name: text})
    assert answer.status_code == 422
    assert name in answer.json()["detail"]
    assert "years 1 to 9999" in answer.json()["detail"]


def test_a_refusal_does_not_repeat_what_stands_for_a_time(client: httpx.Client) -> None:
    answer = client.post("/api/v1/log", json=validation("e") | {"timestamp": "ask ada@example.org"})
    assert answer.status_code == 422
    assert "timestamp is no time" in answer.json()["detail"]
    assert "ada@example.org" not in answer.text
