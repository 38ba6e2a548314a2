"""The audit log in SQL: one chain, repeatable writes, and every kind of tampering found."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, delete, insert, select, text, update

from models.audit import AuditEntry, AuditReceipt, ChainFaultKind
from policies.audit.chain import GENESIS, link_digest, sha256_hex
from policies.audit.engine import make_engine
from policies.audit.errors import AuditStoreUnavailable, EntryConflict, EntryRejected
from policies.audit.metrics import AuditMetrics
from policies.audit.migrate import VERSION_TABLE, alembic_config, migrate, migrate_engine
from policies.audit.redact import UNCODED
from policies.audit.store import AuditStore
from policies.audit.tables import audit_entries, audit_head, metadata
from policies.audit.writer import GroupWriter

KEY = b"a key of the tests, 32 bytes long"
HASH = "cdd01ef066bc6cf2"


def entry(entry_id: str | None = None, **fields: Any) -> AuditEntry:
    given = {"event_type": "constitutional_validation", "constitutional_hash": HASH, **fields}
    return AuditEntry(entry_id=entry_id, **given)


@pytest.fixture
def url(database_url: str) -> str:
    """A migrated, empty audit database on each backend."""
    migrate(database_url)
    return database_url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = make_engine(url)
    yield made
    made.dispose()


@pytest.fixture
def store(engine: Engine) -> AuditStore:
    return AuditStore(engine, KEY)


def fill(store: AuditStore, count: int) -> list[AuditReceipt]:
    prepared = [
        store.prepare(entry(f"e{number}", model_id="m", context={"n": number})) for number in range(1, count + 1)
    ]
    outcomes = store.append_many(prepared)
    assert all(isinstance(outcome, AuditReceipt) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, AuditReceipt)]


def drop_guards(engine: Engine) -> None:
    """What an intruder with the database's password would do first."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER ALL"))
        else:
            connection.execute(text("DROP TRIGGER audit_entries_no_update"))
            connection.execute(text("DROP TRIGGER audit_entries_no_delete"))


def read_rows(engine: Engine) -> list[dict[str, Any]]:
    with engine.begin() as connection:
        query = select(audit_entries).order_by(audit_entries.c.seq)
        return [dict(row) for row in connection.execute(query).mappings()]


def rewrite(engine: Engine, rows: list[dict[str, Any]]) -> None:
    """Replace the whole log; the head stays."""
    with engine.begin() as connection:
        connection.execute(delete(audit_entries))
        connection.execute(insert(audit_entries), rows)


def test_migrations_build_what_the_tables_say(engine: Engine) -> None:
    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
        return not (kind == "table" and name == VERSION_TABLE)

    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"version_table": VERSION_TABLE, "include_object": ours, "compare_type": True},
        )
        assert compare_metadata(context, metadata) == []


def test_migrating_again_keeps_the_log(engine: Engine, store: AuditStore) -> None:
    fill(store, 3)
    migrate_engine(engine)
    assert store.verify().entries == 3


def test_a_log_of_the_first_schema_is_kept_by_the_newest(database_url: str) -> None:
    engine = make_engine(database_url)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
    store = AuditStore(engine, KEY)
    fill(store, 3)
    migrate_engine(engine)
    assert store.verify().entries == 3
    with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
        connection.execute(delete(audit_entries).where(audit_entries.c.seq == 1))
    receipt = store.append(entry("later"))
    assert store.verify().head == store.newest
    assert store.newest is not None
    assert store.newest.digest == receipt.digest
    engine.dispose()


def test_services_that_start_together_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/audit.db"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [url] * 4))
    assert AuditStore(make_engine(url), KEY).verify().ok


def test_receipts_are_links_of_one_chain(engine: Engine, store: AuditStore) -> None:
    receipts = fill(store, 5)
    rows = read_rows(engine)
    assert [row["digest"] for row in rows] == [receipt.digest for receipt in receipts]
    assert [row["previous"] for row in rows] == [GENESIS, *(receipt.digest for receipt in receipts[:-1])]
    head = store.head()
    assert head is not None
    assert (head.seq, head.digest) == (5, receipts[-1].digest)
    report = store.verify()
    assert report.ok
    assert report.entries == 5


def test_an_empty_log_is_sound(store: AuditStore) -> None:
    report = store.verify()
    assert report.ok
    assert report.entries == 0


def test_the_same_entry_again_gets_its_first_receipt(store: AuditStore) -> None:
    first = store.append(entry("one", compliance_score=0.5, context={"prompt": "Where is it?"}))
    fill(store, 2)
    again = store.append(entry("one", compliance_score=0.5, context={"prompt": "Where is it?"}))
    assert again == first
    assert store.verify().entries == 3


@pytest.mark.parametrize(
    "other",
    [{"compliance_score": 0.6}, {"context": {"prompt": "Where was it?"}}, {"violations": ["harmful_content"]}],
)
def test_the_same_id_with_other_content_is_a_conflict(store: AuditStore, other: dict[str, Any]) -> None:
    fields = {"compliance_score": 0.5, "context": {"prompt": "Where is it?"}}
    store.append(entry("one", **fields))
    with pytest.raises(EntryConflict, match="'one'"):
        store.append(entry("one", **{**fields, **other}))
    assert store.verify().entries == 1


def test_a_conflict_does_not_hinder_its_neighbours(store: AuditStore) -> None:
    batch = [entry("a"), entry("b"), entry("a", model_id="other"), entry("b"), entry("c")]
    outcomes = store.append_many([store.prepare(item) for item in batch])
    assert [type(outcome) for outcome in outcomes] == [
        AuditReceipt,
        AuditReceipt,
        EntryConflict,
        AuditReceipt,
        AuditReceipt,
    ]
    assert outcomes[1] == outcomes[3]
    assert store.verify().entries == 3


def test_event_text_never_reaches_the_database(engine: Engine, store: AuditStore) -> None:
    secret = "the patient in room twelve"
    store.append(
        entry(
            "one",
            context={"prompt": secret, "deep": [{"gen_ai.input.messages": [{"role": "user", "content": secret}]}]},
            violations=[
                "harmful_content",
                f"said {secret}",
                {"type": "bias_detected", "severity": "high", "text": secret},
            ],
            Corrected_Response=secret,
            iteration=2,
        ),
    )
    (row,) = read_rows(engine)
    assert secret not in json.dumps(row)
    body = json.loads(row["body"])
    expected = {"digest": "hmac-sha256:" + hmac.new(KEY, secret.encode(), hashlib.sha256).hexdigest()}
    assert body["context"]["prompt"] == expected
    assert body["Corrected_Response"] == expected
    assert body["iteration"] == 2
    assert body["violations"][0] == "harmful_content"
    assert body["violations"][1]["type"] == UNCODED
    assert body["violations"][2] == {"type": "bias_detected", "severity": "high", "text": expected}


def test_a_text_digested_by_its_writer_is_kept(engine: Engine, store: AuditStore) -> None:
    digest = {"digest": "hmac-sha256:" + "a" * 64}
    store.append(entry("one", context={"prompt": digest, "response": {"digest": "not one"}}))
    body = json.loads(read_rows(engine)[0]["body"])
    assert body["context"]["prompt"] == digest
    assert body["context"]["response"] != {"digest": "not one"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": {"score": float("nan")}}, "finite"),
        ({"timestamp": "yesterday"}, "RFC 3339"),
        ({"context": json.loads("[" * 60 + "]" * 60) and {"a": json.loads("[" * 60 + "]" * 60)}}, "deep"),
    ],
)
def test_what_cannot_be_represented_is_rejected(store: AuditStore, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EntryRejected, match=message):
        store.append(entry("one", **fields))


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2025-01-31T12:00:00+02:00", "2025-01-31T10:00:00.000000Z"),
        ("2025-01-31T12:00:00", "2025-01-31T12:00:00.000000Z"),
        (0, "1970-01-01T00:00:00.000000Z"),
    ],
)
def test_times_are_kept_in_utc(engine: Engine, store: AuditStore, given: str | int, stored: str) -> None:
    store.append(entry("one", timestamp=given))
    assert read_rows(engine)[0]["timestamp"] == stored


def test_the_database_refuses_to_change_the_log(engine: Engine, store: AuditStore) -> None:
    fill(store, 2)
    with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
        connection.execute(update(audit_entries).values(model_id="other"))
    with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
        connection.execute(delete(audit_entries))
    assert store.verify().entries == 2


@pytest.mark.parametrize(
    "column", ["body", "event_type", "model_id", "timestamp", "recorded_at", "violation_count", "previous"]
)
@pytest.mark.parametrize("place", [1, 4, 7])
def test_a_changed_entry_is_named(engine: Engine, store: AuditStore, column: str, place: int) -> None:
    fill(store, 7)
    drop_guards(engine)
    rows = read_rows(engine)
    old = rows[place - 1][column]
    rows[place - 1][column] = old + 1 if isinstance(old, int) else "f" * 64 if column == "previous" else old + " "
    rewrite(engine, rows)
    fault = store.verify().fault
    assert fault is not None
    assert (fault.kind, fault.seq, fault.entry_id) == (ChainFaultKind.CHANGED, place, f"e{place}")


def test_a_changed_entry_with_fresh_digests_is_named_by_its_successor(engine: Engine, store: AuditStore) -> None:
    fill(store, 7)
    drop_guards(engine)
    rows = read_rows(engine)
    rows[3]["body"] = rows[3]["body"].replace('"n":4', '"n":5')
    rows[3]["content_digest"] = sha256_hex(rows[3]["body"])
    rows[3]["digest"] = link_digest(rows[3])
    rewrite(engine, rows)
    fault = store.verify().fault
    assert fault is not None
    assert fault.seq == 5


@pytest.mark.parametrize("place", [1, 4, 7])
@pytest.mark.parametrize("renumbered", [False, True])
def test_a_deleted_entry_is_missing(engine: Engine, store: AuditStore, place: int, renumbered: bool) -> None:
    fill(store, 7)
    drop_guards(engine)
    rows = read_rows(engine)
    del rows[place - 1]
    if renumbered:
        for seq, row in enumerate(rows, 1):
            row["seq"] = seq
    rewrite(engine, rows)
    report = store.verify()
    assert report.fault is not None
    assert (report.fault.kind, report.fault.seq) == (ChainFaultKind.MISSING, place)
    assert report.entries == place - 1


@pytest.mark.parametrize(("first", "second"), [(1, 2), (3, 4), (2, 6), (6, 7)])
def test_swapped_entries_are_reordered(engine: Engine, store: AuditStore, first: int, second: int) -> None:
    fill(store, 7)
    drop_guards(engine)
    rows = read_rows(engine)
    rows[first - 1]["seq"], rows[second - 1]["seq"] = second, first
    rewrite(engine, rows)
    fault = store.verify().fault
    assert fault is not None
    assert (fault.kind, fault.seq, fault.entry_id) == (ChainFaultKind.REORDERED, first, f"e{second}")


def test_entries_beyond_the_head_and_a_false_head_are_found(engine: Engine, store: AuditStore) -> None:
    fill(store, 7)
    with engine.begin() as connection:
        connection.execute(update(audit_head).values(seq=5))
    fault = store.verify().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (ChainFaultKind.BEYOND_HEAD, 6)
    with engine.begin() as connection:
        connection.execute(update(audit_head).values(seq=7, digest="0" * 64))
    fault = store.verify().fault
    assert fault is not None
    assert fault.kind is ChainFaultKind.HEAD
    with engine.begin() as connection:
        connection.execute(delete(audit_head))
    fault = store.verify().fault
    assert fault is not None
    assert fault.kind is ChainFaultKind.HEAD
    with pytest.raises(AuditStoreUnavailable, match="head row is gone"):
        store.append(entry("next"))


def test_a_long_log_is_verified_over_its_pages(engine: Engine, store: AuditStore) -> None:
    fill(store, 2500)
    assert store.verify().entries == 2500
    drop_guards(engine)
    with engine.begin() as connection:
        connection.execute(delete(audit_entries).where(audit_entries.c.seq == 2001))
    fault = store.verify().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (ChainFaultKind.MISSING, 2001)


def _write_as_a_process(url: str, writer: int, count: int) -> None:
    engine = make_engine(url)
    log = AuditStore(engine, KEY)
    for number in range(count):
        log.append(entry(f"w{writer}-{number}"))
    engine.dispose()


def test_eight_concurrent_writers_keep_one_chain(url: str, store: AuditStore) -> None:
    """Processes, as replicas of the service would be: only the database can put them in order."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_as_a_process, args=(url, writer, 25)) for writer in range(8)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0] * 8
    report = store.verify()
    assert report.fault is None
    assert report.entries == 200


def group_writer(store: AuditStore, **changes: Any) -> GroupWriter:
    options = {"queue_entries": 100, "batch_entries": 16, "write_timeout_s": 20.0, **changes}
    return GroupWriter(store, AuditMetrics(CollectorRegistry()), **options)


async def test_entries_that_arrive_together_share_transactions(store: AuditStore) -> None:
    registry = CollectorRegistry()
    writer = GroupWriter(store, AuditMetrics(registry), queue_entries=200, batch_entries=64, write_timeout_s=20.0)
    writer.start()
    receipts = await asyncio.gather(*(writer.append(store.prepare(entry(f"e{number}"))) for number in range(100)))
    await writer.stop()
    assert [receipt.id for receipt in receipts] == [f"e{number}" for number in range(100)]
    assert registry.get_sample_value("audit_transaction_entries_sum") == 100
    assert (registry.get_sample_value("audit_transaction_entries_count") or 100) < 20
    assert store.verify().entries == 100


async def test_a_transaction_waits_for_the_writers_that_were_there_a_moment_ago(
    store: AuditStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policies.audit.writer.GATHER_S", 0.5)
    registry = CollectorRegistry()
    writer = GroupWriter(store, AuditMetrics(registry), queue_entries=100, batch_entries=64, write_timeout_s=20.0)
    writer.start()

    async def write(number: int) -> None:
        for turn in range(15):
            await asyncio.sleep(0.0006 * number)
            await writer.append(store.prepare(entry(f"{number}-{turn}")))

    await asyncio.gather(*(write(number) for number in range(8)))
    # One after the other they come in more than fifty.
    assert (registry.get_sample_value("audit_transaction_entries_count") or 100) <= 35
    started = time.monotonic()
    for turn in range(20):
        await writer.append(store.prepare(entry(f"alone-{turn}")))
    assert time.monotonic() - started < 8, "whoever writes alone waits at most once"
    await writer.stop()
    assert store.verify().entries == 140


async def test_a_full_queue_refuses_and_stopping_writes_what_was_accepted(store: AuditStore) -> None:
    writer = group_writer(store, queue_entries=5)
    writer.start()
    # Nothing runs between these: the queue fills before the writer takes from it.
    waiting = [asyncio.ensure_future(writer.append(store.prepare(entry(f"e{number}")))) for number in range(8)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    refused = [result for result in results if isinstance(result, AuditStoreUnavailable)]
    assert len(refused) == 3
    last = asyncio.ensure_future(writer.append(store.prepare(entry("last"))))
    await asyncio.sleep(0)
    await writer.stop()
    assert (await last).id == "last"
    with pytest.raises(AuditStoreUnavailable, match="stopping"):
        await writer.append(store.prepare(entry("late")))
    assert store.verify().entries == 6


async def test_a_database_that_fails_is_told_to_writers_and_survived(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    engine = make_engine(url)
    store = AuditStore(engine, KEY)
    writer = group_writer(store)
    writer.start()
    with pytest.raises(AuditStoreUnavailable, match="OperationalError"):
        await writer.append(store.prepare(entry("one")))
    migrate(url)
    assert (await writer.append(store.prepare(entry("one")))).id == "one"
    await writer.stop()


@pytest.mark.parametrize(
    ("url", "message"),
    [("sqlite://", "lost with the process"), ("mysql+pymysql://h/d", "not in 'mysql'")],
)
def test_databases_that_cannot_hold_a_log_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine(url)
