"""Evaluation entries while the audit engine is away: kept, in order, each once, and never more than fits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from audit_logs import DIGEST_KEY, HASH, read_rows

from models.audit import AuditEntry
from policies.audit.config import AuditConfig
from policies.audit.engine import make_engine
from policies.audit.service import create_audit_app
from policies.clients import (
    AuditClient,
    AuditConflict,
    AuditRefused,
    AuditUnavailable,
    PolicyEngineClient,
    Spool,
    SpoolFull,
    SpoolingAudit,
    SpoolUnavailable,
)

TOKEN = "a token"
SECRET = "the patient in room twelve"


def validation(entry_id: str | None = None, **fields: Any) -> AuditEntry:
    given: dict[str, Any] = {"event_type": "constitutional_validation", "constitutional_hash": HASH, **fields}
    return AuditEntry(entry_id=entry_id, **given)


class Place:
    """A spool's file, and an audit engine that may be there or away."""

    def __init__(self, folder: Path) -> None:
        self.database = f"sqlite:///{folder}/audit.db"
        self.file = folder / "spool.db"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    @asynccontextmanager
    async def engine(self, token: str = TOKEN) -> AsyncIterator[None]:
        app = create_audit_app(AuditConfig(self.database, DIGEST_KEY, token))
        server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_config=None))
        task = asyncio.create_task(server.serve())
        async with asyncio.timeout(30):
            while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
                await asyncio.sleep(0.01)
        try:
            yield
        finally:
            server.should_exit = True
            await task

    def audit(self, max_bytes: int = 10_000_000, timeout_s: float = 2.0) -> SpoolingAudit:
        client = AuditClient(f"http://127.0.0.1:{self.port}", TOKEN, timeout_s)
        return SpoolingAudit(client, Spool(self.file, max_bytes), DIGEST_KEY, first_pause_s=0.05)

    def size(self) -> int:
        return self.file.stat().st_size

    def spool(self) -> Spool:
        return Spool(self.file)

    def stored(self) -> list[str]:
        engine = make_engine(self.database)
        try:
            return [row["entry_id"] for row in read_rows(engine)]
        finally:
            engine.dispose()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  a file has no event for it
            await asyncio.sleep(0.02)


async def test_with_the_engine_there_nothing_is_spooled(place: Place) -> None:
    async with place.engine(), place.audit() as audit:
        await audit.log(validation("one"))
        assert place.stored() == ["one"]
        assert audit.delivered == 0
        assert place.spool().empty()


async def test_what_waits_arrives_in_order_once_the_engine_is_back(place: Place) -> None:
    names = [f"e{number}" for number in range(250)]
    async with place.audit() as audit:
        for name in names:
            await audit.log(validation(name))
        assert place.spool().waiting() == 250
        async with place.engine():
            # It is there again, and others wait: whoever comes now comes after them.
            await audit.log(validation("last"))
            await until(lambda: place.spool().empty())
            assert audit.delivered == 251
            await audit.log(validation("straight"))
    assert place.stored() == [*names, "last", "straight"]


async def test_another_process_delivers_what_one_has_left(place: Place) -> None:
    async with place.audit() as audit:
        await audit.log(validation("one"))
    async with place.engine(), place.audit() as audit:
        await until(lambda: audit.delivered)
    assert place.stored() == ["one"]


def _spool_until_killed(file: str, told: Any) -> None:
    spool = Spool(Path(file))
    for number in range(100_000):
        spool.put(validation(f"e{number}"))
        told.send(number)


async def test_every_entry_that_was_taken_survives_kill_9(place: Place) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_spool_until_killed, args=(str(place.file), there))
    process.start()
    there.close()  # so that a child that dies is an EOFError here, no endless wait
    taken = -1
    while taken < 30:
        taken = here.recv()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(30)
    with contextlib.suppress(EOFError):
        while True:
            taken = here.recv()
    waiting = [item.entry.entry_id for item in place.spool().oldest(1000)]
    assert waiting[: taken + 1] == [f"e{number}" for number in range(taken + 1)]
    async with place.engine(), place.audit():
        await until(lambda: place.spool().empty())
    assert place.stored() == waiting


async def test_several_at_one_spool_deliver_each_entry_once_and_in_order(place: Place) -> None:
    async with place.audit() as one, place.audit() as other:
        for number in range(60):
            await (one if number % 2 else other).log(validation(f"e{number}"))
        async with place.engine():
            await until(lambda: place.spool().empty())
        assert one.delivered + other.delivered == 60
    assert place.stored() == [f"e{number}" for number in range(60)]


async def test_a_delivery_whose_receipt_was_lost_is_repeated_without_harm(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.audit() as audit:
        for name in ("one", "two"):
            await audit.log(validation(name))
        forget = Spool.delivered
        failed: list[int] = []

        def fail_once(spool: Spool, seqs: list[int]) -> None:
            if not failed:
                failed.extend(seqs)
                raise SpoolUnavailable("gone")
            forget(spool, seqs)

        monkeypatch.setattr(Spool, "delivered", fail_once)
        async with place.engine():
            await until(lambda: place.spool().empty())
    assert failed
    assert place.stored() == ["one", "two"]


async def test_what_is_refused_for_good_is_set_aside_and_blocks_nobody(place: Place) -> None:
    spool = place.spool()
    async with place.engine(), place.audit() as audit:
        await audit.log(validation("one"))
    for made in (validation("one", model_id="another fact"), validation("two"), validation("late", timestamp="soon")):
        spool.put(made)
    spool.put(validation("three"))
    async with place.engine(), place.audit():
        await until(lambda: place.spool().empty())
    assert place.stored() == ["one", "two", "three"]
    assert spool.refused() == 2
    assert [(item.entry.entry_id, "status" in item.reason) for item in spool.set_aside_entries()] == [
        ("one", True),
        ("late", True),
    ]


async def test_a_wrong_token_sets_nothing_aside(place: Place) -> None:
    async with place.engine(token="another"), place.audit() as audit:
        await audit.log(validation("one"))
        await asyncio.sleep(0.3)
        assert (place.spool().waiting(), place.spool().refused()) == (1, 0)


async def fill_up(audit: SpoolingAudit, text: dict[str, str]) -> int:
    """Write until the spool is full; how many it has taken."""
    for number in range(1000):
        try:
            await audit.log(validation(f"e{number}", context=text))
        except SpoolFull:
            return number
    raise AssertionError("it was never full")


async def test_a_full_spool_refuses_and_takes_again_when_it_is_emptied(place: Place) -> None:
    text = {"note": "x" * 2000}
    async with place.audit(max_bytes=200_000) as audit:
        kept = await fill_up(audit, text)
        with pytest.raises(SpoolFull, match=r"raise audit_engine\.spool_bytes"):
            await audit.log(validation("more", context=text))
        assert 30 < kept < 100
        assert place.spool().waiting() == kept
        assert place.size() <= 220_000
        async with place.engine():
            await until(lambda: place.spool().empty())
            await audit.log(validation("again", context=text))
    assert place.stored() == [*(f"e{number}" for number in range(kept)), "again"]


async def test_a_validation_that_cannot_be_kept_does_not_count(place: Place) -> None:
    url = "http://127.0.0.1:9"
    async with place.audit(max_bytes=1) as audit:
        with pytest.raises(SpoolFull):
            await audit.log(validation("one"))
        async with PolicyEngineClient(url, HASH, audit=audit.log, digest_key=DIGEST_KEY) as client:
            assert await client.validate_constitutional("text") == (False, 0.0, ["validation_error"])


async def test_a_decision_waits_for_the_engine_itself(place: Place) -> None:
    async with place.audit() as audit:
        with pytest.raises(AuditUnavailable):
            await audit.log(AuditEntry(entry_id="d", event_type="gate_decision", constitutional_hash=HASH))
        assert place.spool().empty()


async def test_the_spool_holds_no_event_text(place: Place) -> None:
    async with place.audit() as audit:
        entry = validation(
            None,
            context={"prompt": SECRET, "deep": [{"content": SECRET}], "odd": "\ud800"},
            violations=["harm", f"said {SECRET}"],
            response=SECRET,
        )
        await audit.log(entry)
        held = b"".join(file.read_bytes() for file in place.file.parent.glob("spool.db*"))
        assert b"hmac-sha256:" in held
        assert SECRET.encode() not in held
        (waiting,) = place.spool().oldest(10)
        assert waiting.entry.entry_id
        assert waiting.entry.timestamp, "the time of the event, not of its delivery"
        async with place.engine():
            await until(lambda: place.spool().empty())
    engine = make_engine(place.database)
    (row,) = read_rows(engine)
    engine.dispose()
    assert SECRET not in json.dumps(row)
    assert json.loads(row["body"])["context"]["odd"] == "\ud800"
    assert row["timestamp"].startswith(str(waiting.entry.timestamp)[:19])


async def test_an_entry_that_was_sent_and_then_spooled_is_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer was lost, so it is sent again from the spool: with the same content, event text digested alike."""
    async with place.engine(), place.audit() as audit:
        send = AuditClient.log
        lost: list[str] = []

        async def losing(client: AuditClient, entry: AuditEntry) -> Any:
            receipt = await send(client, entry)
            if not lost:
                lost.append(receipt.id)
                raise AuditUnavailable("the answer was lost")
            return receipt

        monkeypatch.setattr(AuditClient, "log", losing)
        await audit.log(validation(None, context={"prompt": SECRET}))
        await until(lambda: audit.delivered)
        assert place.spool().refused() == 0
    assert place.stored() == lost


@pytest.mark.parametrize("fields", [{"context": {"x": float("nan")}}, {"timestamp": "soon"}])
async def test_what_can_never_be_stored_is_refused_at_once(place: Place, fields: dict[str, Any]) -> None:
    async with place.audit() as audit:
        with pytest.raises(AuditRefused, match="'one'"):
            await audit.log(validation("one", **fields))
    assert place.spool().empty()


def test_the_same_id_is_kept_once_and_another_fact_under_it_refused(place: Place) -> None:
    spool = place.spool()
    for _ in range(2):
        spool.put(validation("one"))
    assert spool.waiting() == 1
    with pytest.raises(AuditConflict, match="'one'"):
        spool.put(validation("one", model_id="m"))


def test_a_spool_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpoolUnavailable, match="folder failed with"):
        Spool(tmp_path / "folder").put(validation("one"))
    (tmp_path / "no.db").write_bytes(b"this is no database, and long enough to be read as one" * 50)
    with pytest.raises(SpoolUnavailable, match="SQLITE_NOTADB"):
        Spool(tmp_path / "no.db").put(validation("one"))


def test_writes_are_synced(place: Place) -> None:
    spool = place.spool()
    spool.put(validation("one"))
    with sqlite3.connect(place.file) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with spool._guarded() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    spool.close()
    assert spool.waiting() == 1
