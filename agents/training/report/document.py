"""What a report tells, gathered from a cycle's rows and files. No text of an event is in it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agents.training.report.verdict import Verdict, verdict
from app.store import Database, cycles, registry
from models.cycle import Cycle, Manifest

SAMPLES = 24
DISAGREEMENTS = 30


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the forms of a report are written from."""

    cycle: Cycle
    manifest: Manifest
    statement: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    verdict: Verdict
    bounds: Mapping[str, Any]
    threshold: float
    samples: Sequence[Mapping[str, Any]]
    disagreements: Sequence[Mapping[str, Any]]

    @property
    def before(self) -> str:
        """The model that "before and after" speaks of: the champion where it answered, else the base."""
        return "champion" if "champion" in self.evaluation["models"] else "base"

    @property
    def shown_samples(self) -> list[Mapping[str, Any]]:
        """Some of each category, by turns; picked by their text's hash, not by their outcome."""
        return dealt(self.samples, SAMPLES)

    @property
    def shown_disagreements(self) -> list[Mapping[str, Any]]:
        """The candidate's before the others'."""
        return sorted(self.disagreements, key=lambda item: item["model"] != "candidate")[:DISAGREEMENTS]


def gather(
    database: Database,
    cycle_id: str,
    directory: Path,
    *,
    decision: Mapping[str, Any],
    facts: Mapping[str, Any],
    bounds: Mapping[str, Any],
    threshold: float,
) -> Report:
    """The report of an evaluated cycle; raises `ValueError` where it is none."""
    with database.read() as connection:
        cycle = cycles.get(connection, cycle_id)
        version = registry.version_of_cycle(connection, cycle_id)
        if cycle is None or version is None:
            raise ValueError(f"cycle {cycle_id} has no evaluated adapter: there is nothing to report")
        manifest = cycles.get_manifest(connection, cycle_id)
    evaluation = _read(directory / "evaluation.json")
    return Report(
        cycle=cycle,
        manifest=manifest,
        statement=version.statement,
        evaluation=evaluation,
        verdict=verdict(decision, facts, bounds, evaluation),
        bounds=bounds,
        threshold=threshold,
        samples=_read(directory / "samples.json"),
        disagreements=_read(directory / "disagreements.json"),
    )


def dealt(samples: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """At most `limit` samples, the kinds and categories by turns, in each the order of the prompts' hashes."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for sample in sorted(samples, key=lambda entry: hashlib.sha256(entry["prompt"].encode()).digest()):
        groups[sample["category"], sample["expected"]].append(sample)
    hands = [groups[key] for key in sorted(groups)]
    longest = max(map(len, hands), default=0)
    return [hand[turn] for turn in range(longest) for hand in hands if turn < len(hand)][:limit]


def _read(path: Path) -> Any:
    return orjson.loads(path.read_bytes())
