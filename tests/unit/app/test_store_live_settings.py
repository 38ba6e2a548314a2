"""Revisions of live settings: they count once their audit entries are delivered, and in their order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from app.store import Database, live_settings, outbox
from app.store.live_settings import Audited, ChangeRefused, Revision
from app.store.tables import outbox as messages
from models.audit import AuditEntry

RATE, WINDOW, OUTAGE = "policy_evaluation.sample_rate", "dedup.window_s", "dedup.on_outage"


def change(database: Database, name: str, value: Any, by: str = "alice", comment: str = "") -> Revision:
    with database.write() as connection:
        return live_settings.change(connection, name, value, changed_by=by, comment=comment)


def audited(database: Database) -> Audited:
    with database.read() as connection:
        return live_settings.audited(connection)


def deliver(database: Database, count: int | None = None) -> None:
    """Deliver the oldest messages, as the relay does."""
    with database.write() as connection:
        outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection, count or 10_000)])


def prune(database: Database) -> None:
    """Remove what is delivered."""
    with database.write() as connection:
        connection.execute(sa.delete(messages).where(messages.c.delivered_at.is_not(None)))


def test_nothing_was_ever_set(database: Database) -> None:
    assert audited(database) == Audited(0, {})
    with database.read() as connection:
        assert live_settings.current(connection) == {}
        assert live_settings.history(connection) == []


def test_a_change_counts_once_its_entry_is_delivered(database: Database) -> None:
    first = change(database, RATE, 0.5)
    assert audited(database) == Audited(0, {})
    with database.read() as connection:
        assert not live_settings.current(connection)[RATE].audited
    deliver(database)
    assert audited(database) == Audited(first.revision, {RATE: 0.5})
    second = change(database, RATE, 0.6)
    third = change(database, OUTAGE, "pass")
    assert audited(database) == Audited(first.revision, {RATE: 0.5}), "the last audited value stays meanwhile"
    deliver(database, 1)
    assert audited(database) == Audited(second.revision, {RATE: 0.6})
    deliver(database, 1)
    assert audited(database) == Audited(third.revision, {RATE: 0.6, OUTAGE: "pass"})
    with database.read() as connection:
        assert live_settings.current(connection)[RATE].audited


def test_given_back_to_the_configuration(database: Database) -> None:
    change(database, RATE, 0.5)
    deliver(database)
    back = change(database, RATE, None, by="bob")
    assert audited(database).values == {RATE: 0.5}
    deliver(database)
    assert audited(database) == Audited(back.revision, {})
    with pytest.raises(ChangeRefused, match=f"{RATE} is not set"):
        change(database, RATE, None)
    with pytest.raises(ChangeRefused, match=f"{WINDOW} is not set"):
        change(database, WINDOW, None)
    change(database, RATE, 0.7)
    deliver(database)
    assert audited(database).values == {RATE: 0.7}


@pytest.mark.parametrize("value", [0.1, 1e-9, 1, 2**31 - 1, "pass"])
def test_a_value_comes_back_as_it_was(database: Database, value: Any) -> None:
    change(database, RATE, value)
    deliver(database)
    found = audited(database).values[RATE]
    assert found == value
    assert type(found) is type(value)


def test_who_when_and_why(database: Database) -> None:
    made = [
        change(database, RATE, 0.5, "alice", "look closer"),
        change(database, RATE, None, " bob "),
        change(database, WINDOW, 60, "carol"),
    ]
    with database.read() as connection:
        assert live_settings.history(connection) == made[::-1]
        assert live_settings.history(connection, 1) == [made[-1]]
        assert live_settings.current(connection) == {RATE: made[1], WINDOW: made[2]}
    assert [(item.changed_by, item.comment) for item in made] == [
        ("alice", "look closer"),
        ("bob", ""),
        ("carol", ""),
    ]
    assert [item.changed_at for item in made] == sorted(item.changed_at for item in made)


def test_the_audit_entry_says_what_changed(database: Database) -> None:
    change(database, RATE, 0.5, comment="for person@example.org")
    second = change(database, RATE, 0.6, by="bob")
    with database.read() as connection:
        first_item, item = outbox.pending(connection)
    assert (item.channel, item.destination) == (outbox.AUDIT, "routing_setting")
    assert item.payload["context"] == {
        "name": RATE,
        "value": 0.6,
        "previous": 0.5,
        "revision": second.revision,
        "changed_by": "bob",
    }
    assert item.payload["timestamp"] == second.changed_at
    AuditEntry.model_validate({"constitutional_hash": "cdd01ef066bc6cf2", **item.payload})
    assert "person@example.org" not in str(first_item.payload), "the audit log cannot forget what a comment quotes"


@pytest.mark.parametrize(
    ("by", "comment", "words"),
    [
        ("", "", "name a person"),
        ("  ", "", "name a person"),
        ("a\nb", "", "name a person"),
        ("a\x00", "", "name a person"),
        ("x" * 257, "", "name a person"),
        ("\udc80", "", "name a person"),
        ("alice", "x" * 1001, "at most 1000 characters"),
        ("alice", "two\nlines", "on one line"),
        ("alice", "nul\x00", "on one line"),
    ],
)
def test_what_the_audit_engine_would_refuse_is_not_recorded(
    database: Database, by: str, comment: str, words: str
) -> None:
    with pytest.raises(ChangeRefused, match=words):
        change(database, RATE, 0.5, by, comment)
    with database.read() as connection:
        assert live_settings.history(connection) == []
        assert outbox.pending(connection) == []


def test_a_change_that_fails_leaves_neither_row_nor_entry(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            live_settings.change(connection, RATE, 0.5, changed_by="alice")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as connection:
        assert live_settings.history(connection) == []
        assert outbox.pending(connection) == []


def test_other_messages_hold_no_setting_back(database: Database) -> None:
    made = change(database, RATE, 0.5)
    deliver(database)
    with database.write() as connection:
        outbox.audit(connection, "deployment", {"model_id": "m"})
        outbox.publish(connection, "topic", "key", {"entry_id": "x"})
        outbox.publish(connection, "topic", "key", {"no": "entry"})
    assert audited(database) == Audited(made.revision, {RATE: 0.5})


def test_a_pruned_message_was_delivered(database: Database) -> None:
    made = change(database, RATE, 0.5)
    deliver(database)
    prune(database)
    assert audited(database) == Audited(made.revision, {RATE: 0.5})
    # SQLite gives the numbers of pruned messages again: the next message must not stand for the first change.
    later = change(database, WINDOW, 60)
    assert audited(database) == Audited(made.revision, {RATE: 0.5})
    with database.read() as connection:
        assert live_settings.current(connection)[RATE].audited
        assert not live_settings.current(connection)[WINDOW].audited
    deliver(database)
    assert audited(database) == Audited(later.revision, {RATE: 0.5, WINDOW: 60})


def test_changes_become_visible_in_the_order_of_their_revisions(database: Database) -> None:
    """A reader that has seen a revision must never find a lower one appear afterwards: routers would miss it."""
    stop = threading.Event()
    seen: list[set[int]] = []

    def write(writer: int) -> None:
        for number in range(8):
            change(database, RATE if number % 2 else WINDOW, writer * 100 + number, by=f"writer {writer}")

    def read() -> None:
        while not stop.is_set():
            with database.read() as connection:
                seen.append({item.revision for item in live_settings.history(connection)})

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        try:
            for writer in [pool.submit(write, writer) for writer in range(4)]:
                writer.result(60)
        finally:
            stop.set()
        reader.result(60)
    for before, after in pairwise(seen):
        assert before <= after
        assert all(revision > max(before, default=0) for revision in after - before)
    with database.read() as connection:
        items = outbox.pending(connection, 1000)
        assert len(live_settings.history(connection)) == 32
    revisions = [item.payload["context"]["revision"] for item in items]
    assert revisions == sorted(revisions), "entries leave in the order of revisions"
    for name in (RATE, WINDOW):
        told = [item.payload["context"] for item in items if item.payload["context"]["name"] == name]
        assert [entry["previous"] for entry in told] == [None, *[entry["value"] for entry in told[:-1]]]


@limits(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(
        st.tuples(st.sampled_from([RATE, WINDOW]), st.none() | st.integers(1, 9))
        | st.sampled_from(["deliver", "prune"]),
        max_size=25,
    )
)
def test_what_is_audited_is_what_was_set_last_before_the_last_delivery(
    plan: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('live') / 'test.db'}")
    database.migrate()
    newest: dict[str, Any] = {}
    expected = Audited(0, {})
    revision = 0
    for step in plan:
        if step == "deliver":
            deliver(database)
            expected = Audited(revision, {name: value for name, value in newest.items() if value is not None})
        elif step == "prune":
            prune(database)
        elif step[1] is None and newest.get(step[0]) is None:
            with pytest.raises(ChangeRefused):
                change(database, *step)
        else:
            revision = change(database, *step).revision
            newest[step[0]] = step[1]
        assert audited(database) == expected
    database.close()
