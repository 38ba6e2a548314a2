"""Freezes what this checkout writes: Kafka's records and the store's rows, for later code to read.

    PYTHONPATH=.:tests python tests/data/wire/freeze.py NUMBER

writes the folder NUMBER beside this file: `versions.json` (of the records and of the store), `schemas.json` (of the
records, without their words), `records.json` and `rows.json`. A folder is never written again: workers of that state
may still be at work. Freeze anew whenever a record's schema or the store's revision changes; the record's version rises
with its schema.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from agents.routing.classify import RoutingRules
from app.store import Database, approvals, cycles, examples, leases, ledger, live_settings, registry
from app.store.tables import metadata
from models.cycle import CycleRecord, CycleState, Manifest, TrainingPlan, TriggerType
from models.event import RoutedEvent
from models.example import Example
from models.privacy import LedgerEntry

FOLDER = Path(__file__).parent
EXAMPLES = FOLDER.parents[2] / "models" / "examples"
RECORDS = (RoutedEvent, CycleRecord)
_WORDS = ("title", "description")


def versions(database: Database) -> dict[str, Any]:
    """The version of each record on Kafka, and the revision of the store."""
    with database.read() as connection:
        revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
    return {
        "RoutedEvent": RoutingRules(constitutional_hash="any").acgs_version,
        "CycleRecord": CycleRecord.model_fields["schema_version"].default,
        "store": revision,
    }


def schemas() -> dict[str, Any]:
    """The schema of each record on Kafka without its words, which change nothing for a reader."""
    return {record.__name__: _bare(record.model_json_schema()) for record in RECORDS}


def records() -> dict[str, list[Any]]:
    """Each golden example of a record as the model writes it."""
    return {
        record.__name__: [
            record.model_validate_json(path.read_bytes()).model_dump(mode="json", exclude_unset=True)
            for path in sorted(EXAMPLES.glob(f"{record.__name__}.*.json"))
        ]
        for record in RECORDS
    }


def write_rows(database: Database) -> None:
    """Let the store write a cycle with what belongs to it: examples, plan, approval, ledger, deployment."""
    plan = TrainingPlan.model_validate(_example("TrainingPlan.first_cycle"))
    entry = _example("LedgerEntry.one_step")
    with database.write() as connection:
        examples.insert(connection, [Example.model_validate(_example("Example.violation"))])
        live_settings.change(connection, "policy_evaluation.sample_rate", 0.5, changed_by="alice")
        cycle = cycles.open_cycle(
            connection,
            model_id="m",
            domain=entry["domain"],
            trigger_type=TriggerType.MANUAL,
            requested_by="a",
            facts={},
        )
        if cycle is None:
            raise RuntimeError("the store refused the first cycle of a model")
        manifest = Manifest.model_validate(_example("Manifest.small") | {"cycle_id": cycle.cycle_id})
        cycles.save_manifest(connection, manifest, "1" * 64)
        cycle = cycles.transition(
            connection, cycle, CycleState.PREPARING, plan=plan, plan_digest="0" * 64, manifest_digest="1" * 64
        )
        approvals.decide(connection, cycle, reviewer="bob", approved=True, comment="")
        lease = leases.acquire(connection, ledger.domain_lease(entry["domain"]), "worker", 60.0)
        if lease is None:
            raise RuntimeError("the store refused the first lease")
        reserved = LedgerEntry.model_validate(entry | {"cycle_id": cycle.cycle_id, "fence": lease.fence})
        ledger.reserve(connection, reserved, lease)
        registry.deploy(connection, "m", None, "a test")


def rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All rows, tables in an order in which they can be inserted."""
    with database.read() as connection:
        found = {
            table.name: [dict(row._mapping) for row in connection.execute(sa.select(table))]
            for table in metadata.sorted_tables
        }
    return {name: some for name, some in found.items() if some}


def _bare(schema: Any) -> Any:
    if isinstance(schema, dict):
        # A property may be called "description"; a schema's own one is text.
        return {name: _bare(value) for name, value in schema.items() if not (name in _WORDS and isinstance(value, str))}
    return [_bare(item) for item in schema] if isinstance(schema, list) else schema


def _example(name: str) -> Any:
    return json.loads((EXAMPLES / f"{name}.json").read_text())


def main(number: str) -> None:
    """Write the folder; raises `FileExistsError` where it is there already."""
    folder = FOLDER / number
    folder.mkdir()
    with tempfile.TemporaryDirectory() as place:
        database = Database(f"sqlite:///{place}/store.db")
        database.migrate()
        write_rows(database)
        documents = {
            "versions": versions(database),
            "schemas": schemas(),
            "records": records(),
            "rows": rows(database),
        }
        database.close()
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1, sort_keys=name != "rows") + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
