"""What curation writes: examples, feedback and cycles, idempotent by the event's identity. Free of Faust."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from agents.curation import triggers
from agents.curation.examples import (
    Feedback,
    NotCuratable,
    feedback_changes,
    to_example,
    to_feedback,
    to_observation,
)
from app.store import Database, adherence, cycles, examples, forgetting, switches, watch
from app.store.adherence import Observation
from app.store.database import utc_now
from models.cycle import Cycle, TriggerType
from models.event import Classification, Verdict
from models.example import Example, ExampleStatus, Lineage

STAMP_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True, slots=True)
class CuratedRecord:
    """A routed event and where it lay."""

    event: Mapping[str, Any]
    lineage: Lineage


@dataclass(frozen=True, slots=True)
class CurationRules:
    """By what examples are made and cycles open.

    `feedback_key`: what the feedback endpoint signs with. `compliance_threshold`: an evaluation below it is not
    adherent. `half_life`: of adherence, in evaluations; `watch_half_life`: of a champion's. `text_retention_s`: after
    it an example loses its text.
    """

    triggers: triggers.Triggers
    feedback_key: bytes | None = None
    compliance_threshold: float = 0.95
    half_life: float = 500.0
    watch_half_life: float = 500.0
    text_retention_s: float | None = None


@dataclass(slots=True)
class _Batch:
    """What a batch of records says, sorted."""

    examples: list[Example]
    feedback: list[Feedback]
    observations: list[Observation]
    pii_found: int = 0


@dataclass(frozen=True, slots=True)
class _Due:
    """A cycle that a trigger wants open, and what it says of why."""

    model_id: str
    domain: str
    trigger: TriggerType
    facts: dict[str, Any]


class Curator:
    """Writes batches of routed events to the store and opens cycles."""

    def __init__(self, database: Database, rules: CurationRules, has_pii: Callable[[str], bool] | None = None) -> None:
        self.database = database
        self.rules = rules
        self._has_pii = has_pii
        self.counts: Counter[str] = Counter()
        # A fresh worker does not know when the last example came; it waits one settling time.
        self._last_example = time.monotonic()

    def store(self, records: Sequence[CuratedRecord]) -> Counter[str]:
        """Store a batch in one transaction; returns counts by outcome. Raises only what SQLAlchemy raises."""
        outcome: Counter[str] = Counter()
        batch = self._sort(records, outcome)
        with self.database.write() as connection:
            inserted = examples.insert(connection, batch.examples)
            added = examples.add_feedback(connection, [_feedback_row(item) for item in batch.feedback])
            evaluations = adherence.advance(connection, batch.observations)
            adherence.take(connection, evaluations, self.rules.half_life)
            watched = watch.take(connection, evaluations, self.rules.watch_half_life)
            outcome["feedback_applied"] += self._apply_feedback(connection)
        outcome["examples"] += inserted
        outcome["examples_known"] += len(batch.examples) - inserted
        if batch.pii_found:
            outcome["pii_found"] += batch.pii_found
        outcome["feedback"] += added
        outcome["evaluations"] += len(evaluations)
        outcome["evaluations_of_champions"] += watched
        self.counts.update(outcome)
        if inserted:
            self._last_example = time.monotonic()
        return outcome

    def open_due_cycles(self) -> list[Cycle]:
        """Open a cycle for each model and domain where a trigger says so and none is open; none while all is halted."""
        with self.database.write() as connection:
            # Feedback and its event, stored by two workers at once, do not see each other.
            self.counts["feedback_applied"] += self._apply_feedback(connection)
        # Counting takes time, and SQLite has one writer: batches must not wait for it.
        with self.database.read() as connection:
            found = [] if switches.halted(connection) is not None else list(self._due(connection))
        if not found:
            return []
        with self.database.write() as connection:
            if switches.halted(connection) is not None:
                return []
            opened = [
                cycles.open_cycle(
                    connection,
                    model_id=due.model_id,
                    domain=due.domain,
                    trigger_type=due.trigger,
                    requested_by="curation",
                    facts=due.facts,
                )
                for due in found
                # Anew: while examples were counted, another worker's cycle may have opened and ended.
                if self._may_open(connection, due.model_id)[0]
            ]
        return [cycle for cycle in opened if cycle is not None]

    def forget_old_text(self) -> int:
        """Take the text of examples beyond the retention time away, a batch at a time; returns how many."""
        if self.rules.text_retention_s is None:
            return 0
        bound = datetime.now(UTC) - timedelta(seconds=self.rules.text_retention_s)
        stamp = bound.strftime(STAMP_FORMAT)
        with self.database.write() as connection:
            old = forgetting.older_than(connection, stamp)
            done = forgetting.forget(connection, old, requested_by="curation", reason="retention")
        self.counts["examples_expired"] += done.examples
        return done.examples

    def _due(self, connection: Any) -> Iterator[_Due]:
        """What is due. A model's examples are counted only where a cycle could open: hundreds of thousands may wait."""
        quiet = time.monotonic() - self._last_example
        estimates = adherence.read(connection)
        for model_id in examples.waiting_models(connection):
            may_open, since = self._may_open(connection, model_id)
            if not may_open:
                continue
            for group in examples.waiting_units(connection, model_id):
                estimate = estimates.get((group.model_id, group.domain))
                waiting = triggers.Waiting(
                    units=group.units,
                    quiet_s=quiet,
                    oldest_s=_age_s(group.oldest) or 0.0,
                    since_cycle_s=since,
                    adherence=None if estimate is None else estimate.mean,
                    adherence_weight=0.0 if estimate is None else estimate.weight,
                )
                due = self.rules.triggers.due(waiting)
                if due is not None:
                    yield _Due(group.model_id, group.domain, due, triggers.facts(waiting))

    def _may_open(self, connection: Any, model_id: str) -> tuple[bool, float | None]:
        """Whether a cycle of the model could open, and how long ago its last one ended (s)."""
        # In this order: of a cycle that ends between the two questions, the second one hears.
        is_open = cycles.has_open(connection, model_id)
        since = _age_s(cycles.last_finished(connection, model_id))
        return not is_open and not self.rules.triggers.is_cooling(since), since

    def _sort(self, records: Sequence[CuratedRecord], outcome: Counter[str]) -> _Batch:
        batch = _Batch([], [], [])
        now = utc_now()
        for record in records:
            try:
                self._sort_one(record, now, batch)
            except NotCuratable as refusal:
                outcome[refusal.reason] += 1
            except (KeyError, ValueError):
                # No routed event, though it lay in the router's topic: it must not stop those behind it.
                outcome["invalid"] += 1
        return batch

    def _sort_one(self, record: CuratedRecord, now: str, batch: _Batch) -> None:
        observation = to_observation(record.event, record.lineage, self.rules.compliance_threshold)
        if observation is not None:
            batch.observations.append(observation)
        kind = record.event["event_classification"]
        if kind == Classification.HUMAN_FEEDBACK:
            batch.feedback.append(to_feedback(record.event, self.rules.feedback_key))
        elif kind != Classification.POLICY_EVALUATION:
            example = to_example(record.event, record.lineage, now)
            batch.examples.append(example)
            if self._has_pii is not None and any(map(self._has_pii, (example.prompt, example.response))):
                batch.pii_found += 1

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
    then = datetime.strptime(stamp, STAMP_FORMAT).replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()
