"""Curation as one would tell it: an event is an example once; a review counts once, when its event is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from agents.curation.examples import example_id
from app.store import Database
from app.store.tables import examples as examples_table
from models.event import Identity

Event = dict[str, Any]
State = dict[str, tuple[str | None, int, str]]


def key_of(event: Mapping[str, Any]) -> str:
    """The id of an event's example, or of a review."""
    return example_id(Identity(**event["routing_metadata"]["identity"]))


@dataclass
class PlainModel:
    """What must be in the store after any batches of events."""

    examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    reviews: dict[str, Event] = field(default_factory=dict)
    applied: set[str] = field(default_factory=set)

    def store(self, batch: Sequence[Event]) -> None:
        """Take a batch in, as curation does."""
        for event in batch:
            if event["event_classification"] == "human_feedback":
                self.reviews.setdefault(key_of(event), event)
            elif event["event_classification"] != "policy_evaluation":
                base = 10 if event["event_classification"] == "constitutional_violation" else 5
                fresh = {"event_id": event["event_id"], "priority": base, "status": "new"}
                self.examples.setdefault(key_of(event), fresh)
        by_event: dict[str | None, list[dict[str, Any]]] = {}
        for one in self.examples.values():
            by_event.setdefault(one["event_id"], []).append(one)
        for key, event in self.reviews.items():
            targets = by_event.get(event["target_event_id"], [])
            if key in self.applied or len(targets) != 1:
                continue
            self.applied.add(key)
            if event["verdict"] == "approve":
                targets[0]["status"] = "retired"
            else:
                targets[0]["priority"] += 20

    def state(self) -> State:
        """(event id, priority, status) of every example."""
        return {key: (one["event_id"], one["priority"], one["status"]) for key, one in self.examples.items()}


def stored(database: Database) -> State:
    """The same of the examples in a store."""
    table = examples_table.c
    with database.read() as connection:
        rows = connection.execute(sa.select(table.example_id, table.event_id, table.priority, table.status)).all()
    return {row.example_id: (row.event_id, row.priority, row.status) for row in rows}
