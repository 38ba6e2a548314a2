"""The outbox, model versions and deployments, cursors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.store import Database, cursors, cycles, outbox, registry
from app.store.outbox import AUDIT, KAFKA
from models.cycle import TriggerType


def test_messages_stand_in_the_order_written_until_delivered(database: Database) -> None:
    with database.write() as connection:
        for number in range(5):
            outbox.publish(connection, f"topic-{number}", "key", {"number": number})
            outbox.audit(connection, "kind", {"number": number})
    with database.write() as connection:
        items = outbox.pending(connection)
        assert [item.payload["number"] for item in items] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert [item.channel for item in items] == [KAFKA, AUDIT] * 5
        assert [item.seq for item in items] == sorted({item.seq for item in items})
        assert outbox.pending(connection, limit=3) == items[:3]
        outbox.mark_delivered(connection, [items[0].seq, items[2].seq])
        assert outbox.pending(connection) == [items[1], *items[3:]]
        outbox.mark_delivered(connection, [])
        outbox.mark_delivered(connection, [item.seq for item in items])
        assert outbox.pending(connection) == []


def test_an_audit_entry_has_an_id_a_type_and_a_time(database: Database) -> None:
    with database.write() as connection:
        made = outbox.audit(connection, "kind", {"a": 1})
        given = outbox.audit(connection, "kind", {"entry_id": "mine", "timestamp": "then", "event_type": "forged"})
        first, second = outbox.pending(connection)
    assert first.payload["entry_id"] == made
    assert first.payload["timestamp"].endswith("Z")
    assert given == "mine"
    assert second.payload == {"entry_id": "mine", "timestamp": "then", "event_type": "kind"}
    assert (second.destination, second.key) == ("kind", None)


def test_no_message_of_concurrent_writers_is_lost(database: Database) -> None:
    def write(writer: int) -> None:
        for number in range(5):
            with database.write() as connection:
                outbox.publish(connection, "t", str(writer), {"writer": writer, "number": number})

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, writer) for writer in range(4)]:
            done.result(60)
    with database.read() as connection:
        items = outbox.pending(connection)
    for writer in range(4):
        assert [item.payload["number"] for item in items if item.payload["writer"] == writer] == list(range(5))


def test_the_champion_is_the_version_deployed_last(database: Database) -> None:
    def version(cycle_id: str, version_id: str) -> dict[str, Any]:
        return {
            "version_id": version_id,
            "model_id": "m",
            "cycle_id": cycle_id,
            "base_model": "base",
            "path": "/models/x",
            "digest": "d",
            "statement": {"epsilon": 4.0},
        }

    with database.write() as connection:
        opened = [
            cycles.open_cycle(
                connection, model_id=model, domain="d", trigger_type=TriggerType.COUNT, requested_by="c", facts={}
            )
            for model in ("m", "n")
        ]
        first, second = (cycle.cycle_id for cycle in opened if cycle is not None)
        assert registry.version_of_cycle(connection, first) is None
        registry.add_version(connection, version(first, "v1"))
        registry.add_version(connection, version(first, "v1") | {"path": "/elsewhere"})  # told again: no change
        registry.add_version(connection, version(second, "v2"))
        registry.set_evaluation(connection, "v1", {"n": 100})
        kept = registry.version_of_cycle(connection, first)
        assert kept is not None
        assert (kept.path, kept.evaluation) == ("/models/x", {"n": 100})

        assert registry.champion(connection, "m") is None
        before = len(outbox.pending(connection))
        for version_id in ("v1", "v2", "v1"):
            registry.deploy(connection, "m", version_id, "promoted")
            champion = registry.champion(connection, "m")
            assert champion is not None
            assert champion.version_id == version_id
        assert registry.champion(connection, "n") is None
        registry.deploy(connection, "m", None, "rolled back")
        assert registry.champion(connection, "m") is None
        told = [item.payload for item in outbox.pending(connection)[before:]]
    assert [(entry["event_type"], entry["version_id"]) for entry in told] == [
        ("deployment", "v1"),
        ("deployment", "v2"),
        ("deployment", "v1"),
        ("deployment", None),
    ]


def test_cursors_are_kept_by_name(database: Database) -> None:
    with database.write() as connection:
        assert cursors.load(connection, "policy") is None
        cursors.save(connection, "policy", "1")
        cursors.save(connection, "audit", "2")
        cursors.save(connection, "policy", "3")
    with database.read() as connection:
        assert [cursors.load(connection, name) for name in ("policy", "audit")] == ["3", "2"]
