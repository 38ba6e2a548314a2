"""Sealing: what is signed, what is never signed, and how the service tells."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from audit_logs import (
    DIGEST_KEY,
    HASH,
    KEYS,
    LONG_AGO,
    SIGNING,
    Clock,
    fill,
    fill_and_seal,
    read_rows,
    recompute,
    rewrite,
    sealer,
    take_guards,
    witness,
)
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from policies.audit.checkpoint import CheckpointReader, open_checkpoint
from policies.audit.config import AuditConfig, AuditConfigError, SealConfig
from policies.audit.engine import make_engine
from policies.audit.errors import SealBroken
from policies.audit.metrics import AuditMetrics
from policies.audit.migrate import migrate
from policies.audit.seal import KeyRing, SigningKey
from policies.audit.sealer import Sealer, SealLoop
from policies.audit.service import create_audit_app
from policies.audit.store import AuditStore

TOKEN = "writers only"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    migrate(database_url)
    made = make_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def store(engine: Engine) -> AuditStore:
    return AuditStore(engine, DIGEST_KEY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heads.jsonl"


def make_folder(path: Path) -> None:
    path.mkdir()


def remove_folder(path: Path) -> None:
    path.rmdir()


def held(path: Path) -> bytes:
    return path.read_bytes()


def sealed(path: Path) -> list[int]:
    reader = CheckpointReader(path, KEYS)
    found = [head.seq for head in reader]
    assert reader.fault is None or not found
    return found


def test_each_head_is_sealed_once(engine: Engine, store: AuditStore, path: Path) -> None:
    assert sealer(engine, path).seal() is not None, "an empty log is sealed too, so that a missing file is a fault"
    assert sealer(engine, path).seal() is None
    receipts = fill(store, 5)
    head = sealer(engine, path, Clock(LONG_AGO)).seal()
    assert head is not None
    assert (head.seq, head.digest, head.sealed_at) == (5, receipts[-1].digest, "2015-03-01T00:00:00.000000Z")
    assert sealer(engine, path).check().seq == 5
    fill(store, 2500, first=6)
    assert sealer(engine, path).seal() is not None
    assert sealed(path) == [0, 5, 2505]


def test_a_log_that_was_never_sealed_is_checked_whole(
    engine: Engine, store: AuditStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 5)
    take_guards(engine)
    sound = read_rows(engine)
    rewrite(engine, [{**sound[0], "model_id": "other"}, *sound[1:]])
    with pytest.raises(SealBroken, match="entry 1 of the audit log does not fit"):
        sealer(engine, path).seal()
    assert path.read_bytes() == b""
    rewrite(engine, sound)
    assert sealer(engine, path).seal() is not None
    assert "if they were sealed before, restore the file" in caplog.text


Change = Callable[[list[dict[str, object]]], list[dict[str, object]]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: [*rows[:6], {**rows[6], "body": "{}"}, *rows[7:]], "entry 7 of the audit log does not fit"),
        (lambda rows: [*rows[:6], *rows[7:]], "entry 7 of the audit log does not fit"),
        (lambda rows: rows[:8], "entry 9 of the audit log does not fit"),
        (
            lambda rows: recompute([{**rows[0], "model_id": "x"}, *rows[1:]], 0),
            "entry 5 .* is not the one that was sealed",
        ),
        (lambda rows: rows[:4], "entry 5 .* is not the one that was sealed"),
    ],
)
def test_what_does_not_fit_is_not_sealed(
    engine: Engine, store: AuditStore, path: Path, change: Change, told: str
) -> None:
    fill_and_seal(engine, path, [5])
    fill(store, 4, first=6)
    take_guards(engine)
    rewrite(engine, change(read_rows(engine)))
    with pytest.raises(SealBroken, match=told):
        sealer(engine, path).seal()
    assert sealed(path) == [5]


def test_what_the_engine_has_written_is_remembered_until_it_is_sealed(
    engine: Engine, store: AuditStore, path: Path
) -> None:
    fill_and_seal(engine, path, [5])
    fill(store, 4, first=6)
    take_guards(engine)
    rows = read_rows(engine)
    rows = recompute([*rows[:6], {**rows[6], "model_id": "other"}, *rows[7:]], 6)
    rewrite(engine, rows, (9, rows[-1]["digest"]))
    remembering = Sealer(engine, path, SIGNING, KEYS, written=lambda: store.newest)
    with pytest.raises(SealBroken, match="not the one that this engine has written"):
        remembering.seal()
    assert sealer(engine, path).seal() is not None, "an engine that was started since cannot know"


def test_a_file_that_was_cut_or_put_back_is_noticed(engine: Engine, store: AuditStore, path: Path) -> None:
    fill_and_seal(engine, path, [3, 3])
    running = sealer(engine, path)
    whole = path.read_bytes()
    assert running.check().seq == 6
    path.write_bytes(whole.splitlines(keepends=True)[0])
    fill(store, 1, first=7)
    with pytest.raises(SealBroken, match="cut short or changed"):
        running.seal()
    path.write_bytes(whole)
    assert running.seal() is not None
    path.write_bytes(b"nonsense\n")
    with pytest.raises(SealBroken, match="is no signed head"):
        sealer(engine, path).check()


def test_several_engines_share_a_file(engine: Engine, store: AuditStore, path: Path) -> None:
    one, other = sealer(engine, path), sealer(engine, path)
    for number, turn in enumerate([one, other, other, one], 1):
        fill(store, 1, first=number)
        assert turn.seal() is not None
    assert sealed(path) == [1, 2, 3, 4]


def test_a_new_key_goes_on_where_the_old_one_is_known(engine: Engine, store: AuditStore, path: Path) -> None:
    fill_and_seal(engine, path, [3])
    fill(store, 1, first=4)
    new = SigningKey(b"\x07" * 32)
    with pytest.raises(SealBroken, match="unknown key"):
        Sealer(engine, path, new, KeyRing([new.public])).seal()
    both = KeyRing([new.public, SIGNING.public])
    assert Sealer(engine, path, new, both).seal() is not None
    reader = CheckpointReader(path, both)
    assert [head.seq for head in reader] == [3, 4]
    assert reader.fault is None


# --- in the running service --------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/audit.db"


def config(url: str, path: Path, **fields: object) -> AuditConfig:
    seal = SealConfig(bytes(range(32)), path, **{"interval_s": 0.05, **fields})  # type: ignore[arg-type]
    return AuditConfig(url, DIGEST_KEY, TOKEN, seal=seal)


@asynccontextmanager
async def running(config: AuditConfig) -> AsyncIterator[httpx.AsyncClient]:
    app = create_audit_app(config)
    transport = httpx.ASGITransport(app)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://audit", headers=headers) as client,
    ):
        yield client


async def write(client: httpx.AsyncClient, entry_id: str) -> None:
    body = {"entry_id": entry_id, "event_type": "x", "constitutional_hash": HASH}
    assert (await client.post("/api/v1/log", json=body)).status_code == 200


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the file has no event for it
            await asyncio.sleep(0.01)


async def test_a_running_service_seals_and_says_what_is_not_sealed_yet(url: str, path: Path) -> None:
    async with running(config(url, path)) as client:
        await write(client, "one")
        await until(lambda: sealed(path) == [0, 1])
        assert "audit_sealed_through_entry 1.0" in (await client.get("/metrics")).text
        report = (await client.get("/api/v1/verify")).json()
        assert (report["ok"], report["sealed_through"], report["unsealed"]) == (True, 1, 0)
    async with running(config(url, path, interval_s=3600.0)) as client:
        await until(lambda: sealed(path) == [0, 1])
        await write(client, "two")
        report = (await client.get("/api/v1/verify")).json()
        assert (report["ok"], report["sealed_through"], report["unsealed"]) == (True, 1, 1)
    assert sealed(path) == [0, 1, 2], "what came last is sealed by a clean stop"


async def test_a_log_that_was_recomputed_while_the_service_was_down_is_noticed_at_its_start(
    url: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(config(url, path)) as client:
        for name in ("one", "two", "three"):
            await write(client, name)
    engine = make_engine(url)
    take_guards(engine)
    rows = recompute([{**read_rows(engine)[0], "model_id": "other"}, *read_rows(engine)[1:]], 0)
    rewrite(engine, rows, (3, rows[-1]["digest"]))
    engine.dispose()
    before = held(path)
    async with running(config(url, path)) as client:
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert "flywheel audit verify" in ready.json()["detail"]
        assert (await client.get("/health/live")).status_code == 200
        assert "audit_seal_broken 1.0" in (await client.get("/metrics")).text
        report = (await client.get("/api/v1/verify")).json()
        assert (report["ok"], report["fault"]["kind"], report["fault"]["through"]) == (False, "recomputed", 3)
        await write(client, "evidence is still taken")
    assert held(path) == before
    assert "is not sealed any more: entry 3" in caplog.text


async def test_a_file_that_cannot_be_written_is_counted_and_tried_again(url: str, path: Path) -> None:
    make_folder(path)
    async with running(config(url, path)) as client:
        await write(client, "one")

        async def failures() -> str:
            return (await client.get("/metrics")).text

        async with asyncio.timeout(30):
            while 'audit_seals_total{outcome="failed"} 0.0' in await failures():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await client.get("/health/ready")).status_code == 200
        remove_folder(path)
        await until(lambda: path.exists() and sealed(path) == [1])


async def test_an_engine_that_finds_the_file_in_use_leaves_it(engine: Engine, store: AuditStore, path: Path) -> None:
    fill(store, 1)
    registry = CollectorRegistry()
    loop = SealLoop(sealer(engine, path), AuditMetrics(registry), 0.02)
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with open_checkpoint(path):
            taken.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(30)
    await loop.start()
    await asyncio.sleep(0.2)
    assert held(path) == b""
    assert loop.broken is None
    done.set()
    holder.join()
    await until(lambda: held(path))
    await loop.stop()
    assert registry.get_sample_value("audit_seals_total", {"outcome": "failed"}) == 0


def test_an_interval_of_nothing_is_refused(path: Path) -> None:
    with pytest.raises(AuditConfigError, match="0 s"):
        SealConfig(bytes(32), path, interval_s=0)
    assert "1" * 10 not in repr(SealConfig(b"1" * 32, path))


def test_the_witness_is_the_same_from_outside(engine: Engine, path: Path) -> None:
    heads = fill_and_seal(engine, path, [3, 2])
    report = AuditStore(engine, DIGEST_KEY).verify(witness(path))
    assert (report.ok, report.sealed_through, report.unsealed) == (True, heads[-1].seq, 0)
