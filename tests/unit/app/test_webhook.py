"""Notices: queued with what they tell of, delivered signed and in order by a receiver that fails first, never lost."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from web_rig import Rig, walk

from app.relay import OutboxRelay
from app.store import cycles, outbox, registry
from app.store import tables as schema
from app.store.database import Database
from app.webhook import WebhookConfig, WebhookRelay, signature
from models.cycle import CycleState

SECRET = "a secret of the receiver, long enough"


@dataclass
class Receiver:
    """What came, and what the receiver answers next: the last answer stands for all that follow."""

    answers: list[int]
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.requests]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@contextmanager
def receiving(*answers: int, slow_s: float = 0.0) -> Iterator[Receiver]:
    receiver = Receiver(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            time.sleep(slow_s)
            status = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def relay(database: Database, url: str | None, holder: str = "here", **more: Any) -> WebhookRelay:
    config = None if url is None else WebhookConfig(url, SECRET, most_wait_s=0.05, **more)
    return WebhookRelay(lambda: database, config, holder, first_wait_s=0.01)


async def drain(one: WebhookRelay, rounds: int = 30) -> None:
    """Deliver until nothing waits, as `run` does, without its pauses."""
    for _ in range(rounds):
        await one.deliver_once()
    await one.close()


def step_back(connection: sa.Connection, model_id: str, reason: str) -> None:
    deployed, target = registry.current(connection, model_id), registry.rollback_target(connection, model_id)
    assert deployed is not None
    assert target is not None
    by = registry.Authority("ada")
    registry.roll_back(
        connection, model_id, target, reason, by, kind=registry.Kind.ROLLBACK, expected=int(deployed.seq)
    )


def left(database: Database) -> list[tuple[str, str | None]]:
    table = schema.outbox.c
    with database.read() as connection:
        rows = connection.execute(
            sa.select(table.destination, table.refusal, table.delivered_at).where(table.channel == outbox.WEBHOOK)
        ).all()
    return [(row.destination, row.refusal) for row in rows if row.delivered_at is None or row.refusal]


async def test_a_receiver_that_fails_first_gets_each_notice_signed_and_in_order(rig: Rig) -> None:
    first = rig.cycle("m1", "d")
    with rig.database.write() as connection:
        second = walk(connection, "m2", "d", CycleState.PROMOTED)
        step_back(connection, "m2", "rolled back by ada: it refuses everything")
    # The first notice meets an error, a redirect, a refusal and too many requests before it is taken.
    with receiving(500, 302, 401, 429, 204) as receiver:
        await drain(relay(rig.database, receiver.url, pages="https://flywheel.example"))
    bodies = receiver.bodies
    kinds = [body["type"] for body in bodies]
    assert kinds == ["cycle.awaits_approval"] * 6 + ["model.rolled_back"]
    assert receiver.ids[:5] == [receiver.ids[0]] * 5  # the same notice, again and again
    assert len(set(receiver.ids)) == 3
    assert bodies[0]["data"] == {
        "cycle_id": first.cycle_id, "model_id": "m1", "domain": "d", "state": "awaiting_approval",
        "awaits": "training", "link": f"https://flywheel.example/cycles/{first.cycle_id}",
    }  # fmt: skip
    assert bodies[-1]["data"]["from_version"] == second.cycle_id
    assert bodies[-1]["data"]["to_version"] is None
    for headers, body in receiver.requests:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mac = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{mac}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert left(rig.database) == []


def test_the_signature_is_that_of_standard_webhooks() -> None:
    # The example of the specification's reference libraries.
    secret, at = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330
    body = b'{"test": 2432232314}'
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


async def test_a_receiver_that_is_away_holds_back_no_audit_entry(rig: Rig) -> None:
    cycle = rig.cycle("m", "d")
    told: list[str] = []

    class Sink:
        async def log_body(self, body: dict[str, Any]) -> None:
            told.append(body["event_type"])

        async def send_and_wait(self, topic: str, value: bytes, key: bytes | None) -> None:
            told.append(topic)

    hook = relay(rig.database, "http://127.0.0.1:1/hook")
    assert await hook.deliver_once() > 0
    sink = Sink()
    delivering = OutboxRelay(rig.database, sink, sink, "relay")
    while await delivering.deliver_once():
        pass
    assert told.count("optimization-cycles") == cycle.version
    assert [kind for kind, _ in left(rig.database)] == ["cycle.awaits_approval"]
    assert hook.snapshot()["failed_attempts"] == 1
    await hook.close()


async def test_a_killed_relay_loses_nothing(rig: Rig) -> None:
    """What was sent and not marked is sent again under the same id; what was not sent is sent."""
    rig.cycle("m", "d")
    with receiving(200) as receiver:
        killed = relay(rig.database, receiver.url, "killed")
        killed._mark = lambda seq, refusal: (_ for _ in ()).throw(RuntimeError("killed"))  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            await killed.deliver_once()
        await killed.close()
        await drain(relay(rig.database, receiver.url, "next"), 3)
    assert len(receiver.requests) == 2
    assert len(set(receiver.ids)) == 1
    assert left(rig.database) == []


async def test_two_relays_deliver_once(rig: Rig) -> None:
    rig.cycle("m", "d")
    with receiving(200) as receiver:
        first, second = relay(rig.database, receiver.url, "a"), relay(rig.database, receiver.url, "b")
        await first.deliver_once()
        rig.cycle("n", "d")
        await second.deliver_once()  # the lease is the first's
        assert len(receiver.requests) == 1
        await first.close()
        await second.deliver_once()
        await second.close()
    assert len(receiver.requests) == 2


async def test_what_is_too_old_or_unwanted_is_given_up_and_said(rig: Rig) -> None:
    rig.cycle("m", "d")
    with receiving(410) as receiver:
        gone = relay(rig.database, receiver.url)
        await drain(gone, 2)
    assert left(rig.database) == [("cycle.awaits_approval", "the receiver answered 410")]
    rig.cycle("n", "d")
    with receiving(500) as receiver:
        late = relay(rig.database, receiver.url, give_up_s=0.0)
        await drain(late, 2)
    assert left(rig.database)[1:] == [("cycle.awaits_approval", "the receiver answered 500")]
    assert (gone.snapshot()["given_up"], late.snapshot()["given_up"]) == (1, 1)


async def test_without_a_receiver_notices_do_not_pile_up(rig: Rig) -> None:
    rig.cycle("m", "d")
    await drain(relay(rig.database, None), 2)
    assert left(rig.database) == []


def test_what_wakes_somebody(rig: Rig) -> None:
    with rig.database.write() as connection:
        walk(connection, "m", "d", CycleState.AWAITING_PROMOTION)
        spent = walk(connection, "n", "d", CycleState.PREPARING)
        reason = {"code": "BudgetUsedUp", "message": "the domain has trained 3 cycles"}
        cycles.transition(connection, spent, CycleState.REJECTED, reason, reasons=(reason,))
        other = walk(connection, "o", "d", CycleState.PREPARING)
        cycles.transition(connection, other, CycleState.FAILED, reasons=({"code": "Died", "message": "the job died"},))
    told = [(notice["type"], notice["data"].get("awaits")) for notice in rig.notices()]
    assert told == [
        ("cycle.awaits_approval", "training"),
        ("cycle.awaits_approval", "promotion"),
        ("privacy.budget_exhausted", None),
    ]


def test_going_forward_wakes_nobody_and_going_back_does(rig: Rig) -> None:
    with rig.database.write() as connection:
        first = walk(connection, "m", "d", CycleState.PROMOTED)
        second = walk(connection, "m", "d", CycleState.PROMOTED)
        registry.deploy(connection, "m", second.cycle_id, "again")
        assert "model.rolled_back" not in [item.destination for item, _ in outbox.pending_notices(connection)]
        step_back(connection, "m", "adherence fell")
        registry.deploy(connection, "m", second.cycle_id, "mended")
    backs = [notice["data"] for notice in rig.notices() if notice["type"] == "model.rolled_back"]
    assert [(back["from_version"], back["to_version"]) for back in backs] == [(second.cycle_id, first.cycle_id)]
