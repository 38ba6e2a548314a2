"""JSON Schemas of every record that crosses a boundary; `python -m models.schemas` writes them to `json_schema/`.

Generated from the models, never edited: producers and readers in other languages build on the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from models.audit import (
    AuditEntry,
    AuditReceipt,
    ChainHead,
    ChainReport,
    RecentOptimization,
    RecentViolation,
    SignedHead,
    StoredEntry,
)
from models.cycle import Cycle, CycleRecord, Manifest, TrainingPlan
from models.decision import GateDecision
from models.evaluation_api import (
    ErrorResponse,
    EvaluateBatchRequest,
    EvaluateBatchResponse,
    EvaluateRequest,
    Evaluation,
    MetricsResponse,
    ValidateRequest,
    ValidateResponse,
)
from models.event import AuditEvent, RoutedEvent
from models.example import Example
from models.privacy import LedgerEntry, PrivacySpent, PrivacyStatement

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DIRECTORY = Path(__file__).parent / "json_schema"

RECORDS: tuple[type[BaseModel], ...] = (
    # Kafka
    AuditEvent,
    RoutedEvent,
    CycleRecord,
    # HTTP: the policy engine
    EvaluateRequest,
    Evaluation,
    EvaluateBatchRequest,
    EvaluateBatchResponse,
    ValidateRequest,
    ValidateResponse,
    MetricsResponse,
    ErrorResponse,
    # HTTP: the audit engine
    AuditEntry,
    AuditReceipt,
    RecentViolation,
    RecentOptimization,
    StoredEntry,
    ChainHead,
    ChainReport,
    SignedHead,
    # SQL documents, and what auditors are shown
    Example,
    Cycle,
    TrainingPlan,
    Manifest,
    GateDecision,
    LedgerEntry,
    PrivacySpent,
    PrivacyStatement,
)


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema (draft 2020-12) of each record by its name: what a reader of the record accepts."""
    return {record.__name__: {"$schema": DIALECT, **record.model_json_schema()} for record in RECORDS}


def render(schema: dict[str, Any]) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write(directory: Path = DIRECTORY) -> None:
    """Write one file a record, and remove those of records that are no more."""
    files = {f"{name}.json": render(schema) for name, schema in schemas().items()}
    directory.mkdir(exist_ok=True)
    for stale in directory.glob("*.json"):
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
