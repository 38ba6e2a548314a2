"""Old and new workers side by side: each reads what the other writes, on Kafka and in SQL.

`tests/data/wire` holds what workers of earlier states wrote, by their own code. An old worker's SQL is played by tables
reflected from a database at its revision, so it knows nothing that came later.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa
from data.wire.freeze import FOLDER, RECORDS, records, rows, schemas, versions, write_rows
from pydantic import BaseModel
from services import REPOSITORY

from agents.curation.agent import TOPICS
from agents.curation.curator import CuratedRecord, Curator
from app.settings import Settings
from app.store import Database, approvals, cycles, examples, ledger, live_settings, outbox, registry
from app.store.tables import metadata
from app.topics import CYCLES
from app.wiring import curation_rules
from models.cycle import CycleRecord
from models.example import Lineage

STATES = sorted((path.name for path in FOLDER.iterdir() if (path / "versions.json").exists()), key=int)
REVISIONS = sorted(path.name[:4] for path in (REPOSITORY / "app/store/migrations/versions").glob("0*.py"))
MODELS: dict[str, type[BaseModel]] = {record.__name__: record for record in RECORDS}
REMEDY = "raise the record's version and run: PYTHONPATH=.:tests python tests/data/wire/freeze.py"
LATER = {"added_later": {"by": "a newer worker"}}


def frozen(state: str, name: str) -> Any:
    return json.loads((FOLDER / state / f"{name}.json").read_text())


def test_what_is_written_now_is_frozen(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    database.migrate()
    assert frozen(STATES[-1], "schemas") == schemas(), f"{REMEDY} {len(STATES) + 1}"
    assert frozen(STATES[-1], "versions") == versions(database), f"{REMEDY} {len(STATES) + 1}"
    database.close()


def test_a_record_whose_schema_changed_has_another_version() -> None:
    for old, new in pairwise(STATES):
        for name in MODELS:
            if frozen(old, "schemas")[name] != frozen(new, "schemas")[name]:
                assert frozen(old, "versions")[name] != frozen(new, "versions")[name], (name, old, new)


@pytest.mark.parametrize("state", STATES)
def test_old_records_are_read(state: str) -> None:
    for name, documents in frozen(state, "records").items():
        assert documents
        for document in documents:
            assert MODELS[name].model_validate(document).model_dump(mode="json", exclude_unset=True) == document


@pytest.mark.parametrize("state", STATES)
def test_old_routed_events_become_examples(state: str, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    database.migrate()
    routed = [
        event for event in frozen(state, "records")["RoutedEvent"] if event["routing_metadata"]["topic"] in TOPICS
    ]
    told = [CuratedRecord(event, Lineage(topic="t", partition=0, offset=at)) for at, event in enumerate(routed)]
    Curator(database, curation_rules(Settings(data_dir=tmp_path))).store(told)
    kinds = {"constitutional_violation", "model_optimization_trigger"}
    wanted = {event["event_id"] for event in routed if event["event_classification"] in kinds}
    with database.read() as connection:
        found = {example.event_id for example in examples.search(connection, examples.Filter())}
    database.close()
    assert found == wanted != set()


@pytest.mark.parametrize("state", STATES)
def test_an_old_reader_takes_new_records(state: str) -> None:
    """By the schema that it was built on, also with fields that it has never heard of; and so do we."""
    for name, documents in records().items():
        old = jsonschema.Draft202012Validator(frozen(state, "schemas")[name])
        for document in documents:
            old.validate(document)
            old.validate(document | LATER)
            MODELS[name].model_validate(document | LATER)
            for required in old.schema["required"]:
                assert not old.is_valid({field: value for field, value in document.items() if field != required})


class OldWorker:
    """Reads and writes by the tables of a revision, as they lie in the database when it starts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tables = sa.MetaData()
        self._tables.reflect(database.engine)

    def write(self, written: dict[str, list[dict[str, Any]]]) -> None:
        """Insert rows; numbers that the database gives are left to it."""
        with self._database.write() as connection:
            for name, some in written.items():
                table = self._tables.tables[name]
                given = _serial(table)
                for row in some:
                    kept = {column: value for column, value in row.items() if column != given}
                    connection.execute(sa.insert(table).values(kept))

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """All rows, without the numbers that the database gave."""
        with self._database.read() as connection:
            found = {
                table.name: [
                    {str(name): value for name, value in row._mapping.items() if name != _serial(table)}
                    for row in connection.execute(sa.select(table))
                ]
                for table in self._tables.sorted_tables
            }
        return {name: some for name, some in found.items() if some and name != "alembic_version"}

    def clear(self) -> None:
        """Delete all rows."""
        with self._database.write() as connection:
            for table in reversed(self._tables.sorted_tables):
                if table.name != "alembic_version":
                    connection.execute(sa.delete(table))


def _serial(table: sa.Table) -> str | None:
    keys = list(table.primary_key.columns)
    return keys[0].name if len(keys) == 1 and isinstance(keys[0].type, sa.Integer) else None


@pytest.mark.parametrize("state", STATES)
def test_old_and_new_workers_share_a_database(state: str, database_url: str) -> None:
    database = Database(database_url)
    database.migrate(frozen(state, "versions")["store"])
    old, written = OldWorker(database), frozen(state, "rows")
    old.write(written)
    before = old.read()

    database.migrate()

    assert old.read() == before, "a migration changed what an old worker reads"
    _assert_read(database, written)
    old.clear()
    old.write(written)
    assert old.read() == before
    _assert_read(database, written)
    # And what the new code writes is what an old worker can read.
    old.clear()
    write_rows(database)
    assert old.read().keys() == before.keys()
    _assert_read(database, rows(database))
    database.close()


def _assert_read(database: Database, written: dict[str, list[dict[str, Any]]]) -> None:
    """The present code finds what was written by any."""
    (cycle_row,), (example_row,), (spent,) = written["cycles"], written["examples"], written["privacy_ledger"]
    with database.read() as connection:
        cycle = cycles.get(connection, cycle_row["cycle_id"])
        found = examples.get(connection, [example_row["example_id"]])
        phases = ledger.phases(connection, spent["domain"])
        decision = approvals.latest(connection, cycle_row["cycle_id"])
        values = live_settings.audited(connection)
        deployed = registry.current(connection, "m")
        queued = outbox.pending(connection)
    assert cycle is not None
    assert (cycle.state.value, cycle.version) == (cycle_row["state"], cycle_row["version"])
    assert cycle.plan is not None
    assert found[example_row["example_id"]].prompt == example_row["prompt"]
    assert phases == [(spent["noise_multiplier"], spent["sample_rate"], spent["steps"])]
    assert decision is not None
    assert decision.approved
    assert values is not None
    assert deployed is not None
    assert deployed.version_id is None
    assert [item.payload for item in queued] == [row["payload"] for row in written["outbox"]]
    announced = [CycleRecord.model_validate(item.payload) for item in queued if item.destination == CYCLES.name]
    assert announced[-1].cycle_id == cycle.cycle_id


Shape = dict[str, dict[str, tuple[str, bool, bool]]]


def shape(database: Database) -> Shape:
    """Each table's columns: type, whether null may be there, whether one may leave it out."""
    look = sa.inspect(database.engine)
    return {
        name: {
            column["name"]: (
                str(column["type"]),
                bool(column["nullable"]),
                bool(column["nullable"]) or column["default"] is not None,
            )
            for column in look.get_columns(name)
        }
        for name in look.get_table_names()
    }


def breaking(before: Shape, after: Shape) -> list[str]:
    """What a step does that a worker of the revision before would fall over."""
    told = [f"table {name} is gone" for name in before.keys() - after.keys()]
    for table in before.keys() & after.keys():
        old, new = before[table], after[table]
        told += [f"{table}.{name} is gone" for name in old.keys() - new.keys()]
        told += [f"{table}.{name} must be given" for name in new.keys() - old.keys() if not new[name][2]]
        told += [
            f"{table}.{name} changed: {old[name]} {new[name]}" for name in old if new.get(name, old[name]) != old[name]
        ]
    return told


def test_every_migration_only_adds(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    shapes = []
    for revision in REVISIONS:
        database.migrate(revision)
        shapes.append(shape(database))
    database.close()
    assert set(shapes[-1]) == {*metadata.tables, "alembic_version"}
    found = {new: breaking(before, after) for new, (before, after) in zip(REVISIONS[1:], pairwise(shapes), strict=True)}
    assert {revision: told for revision, told in found.items() if told} == {}


def test_a_contraction_is_noticed() -> None:
    before: Shape = {"t": {"a": ("INTEGER", False, False), "b": ("TEXT", True, True)}, "u": {}}
    assert breaking(before, before | {"new": {"c": ("TEXT", False, False)}}) == []
    assert breaking(before, {"t": before["t"]}) == ["table u is gone"]
    assert breaking(before, before | {"t": {"a": before["t"]["a"]}}) == ["t.b is gone"]
    must = before["t"] | {"c": ("TEXT", False, False)}
    assert breaking(before, before | {"t": must}) == ["t.c must be given"]
    assert breaking(before, before | {"t": must | {"c": ("TEXT", False, True)}}) == []
    narrowed = before["t"] | {"b": ("TEXT", False, False)}
    assert breaking(before, before | {"t": narrowed})[0].startswith("t.b changed")
