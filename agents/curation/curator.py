"""What curation writes: examples, feedback and cycles, idempotent by the event's identity. Free of Faust."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agents.curation.examples import Feedback, NotCuratable, feedback_changes, to_example, to_feedback
from agents.curation.triggers import CountTrigger
from app.store import Database, cycles, examples
from app.store.database import utc_now
from models.cycle import Cycle, TriggerType
from models.event import Classification, Verdict
from models.example import ExampleStatus, Lineage


@dataclass(frozen=True, slots=True)
class CuratedRecord:
    """A routed event and where it lay."""

    event: Mapping[str, Any]
    lineage: Lineage


class Curator:
    """Writes batches of routed events to the store and opens cycles."""

    def __init__(self, database: Database, trigger: CountTrigger) -> None:
        self.database = database
        self.trigger = trigger
        self.counts: Counter[str] = Counter()
        # A fresh worker does not know when the last example came; it waits one settling time.
        self._last_example = time.monotonic()

    def store(self, records: Sequence[CuratedRecord]) -> Counter[str]:
        """Store a batch in one transaction; returns counts by outcome. Raises only what SQLAlchemy raises."""
        outcome: Counter[str] = Counter()
        new, feedback = [], []
        now = utc_now()
        for record in records:
            try:
                if record.event["event_classification"] == Classification.HUMAN_FEEDBACK:
                    feedback.append(to_feedback(record.event))
                else:
                    new.append(to_example(record.event, record.lineage, now))
            except NotCuratable as refusal:
                outcome[refusal.reason] += 1
            except (KeyError, ValueError):
                # No routed event, though it lay in the router's topic: it must not stop those behind it.
                outcome["invalid"] += 1
        with self.database.write() as connection:
            inserted = examples.insert(connection, new)
            added = examples.add_feedback(connection, [_feedback_row(item) for item in feedback])
            outcome["feedback_applied"] += self._apply_feedback(connection)
        outcome["examples"] += inserted
        outcome["examples_known"] += len(new) - inserted
        outcome["feedback"] += added
        self.counts.update(outcome)
        if inserted:
            self._last_example = time.monotonic()
        return outcome

    def open_due_cycles(self) -> list[Cycle]:
        """Open a cycle for each model and domain that has enough examples and none open."""
        opened = []
        quiet = time.monotonic() - self._last_example
        with self.database.write() as connection:
            # Feedback and its event, stored by two workers at once, do not see each other.
            self.counts["feedback_applied"] += self._apply_feedback(connection)
            for model_id, domain, waiting in examples.count_new(connection):
                ended = cycles.last_finished(connection, model_id)
                if not self.trigger.is_due(waiting, quiet, _age_s(ended)):
                    continue
                cycle = cycles.open_cycle(
                    connection,
                    model_id=model_id,
                    domain=domain,
                    trigger_type=TriggerType.COUNT,
                    requested_by="curation",
                    facts={"waiting_examples": waiting},
                )
                if cycle is not None:
                    opened.append(cycle)
        return opened

    def _apply_feedback(self, connection: Any) -> int:
        applied = 0
        while found := examples.unapplied_feedback(connection):
            for row, example_id in found:
                target = examples.get(connection, [example_id], to_change=True)[example_id]
                feedback = Feedback(
                    row.feedback_id,
                    row.target_event_id,
                    Verdict(row.verdict),
                    row.corrected_response,
                    row.reviewer_id,
                    row.signed,
                )
                changes = feedback_changes(feedback, target.priority)
                if target.status is not ExampleStatus.NEW:
                    # What a cycle has used, or somebody has had forgotten, stays so.
                    changes.pop("status", None)
                examples.apply_feedback(connection, row.feedback_id, example_id, changes)
            applied += len(found)
        return applied


def _feedback_row(item: Feedback) -> dict[str, Any]:
    return {
        "feedback_id": item.feedback_id,
        "target_event_id": item.target_event_id,
        "verdict": item.verdict.value,
        "corrected_response": item.corrected_response,
        "signed": item.signed,
        "reviewer_id": item.reviewer_id,
    }


def _age_s(stamp: str | None) -> float | None:
    if stamp is None:
        return None
    then = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()
