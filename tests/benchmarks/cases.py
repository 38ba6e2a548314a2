"""The cases of the table: each contender over the same mix in one form, rounds of all of them in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from app.topics import AUDIT_EVENTS
from benchmarks.expected import Expected
from benchmarks.messages import Form, encode
from benchmarks.mix import SEED, events
from benchmarks.run import BASELINES, OURS, SPECIFICATION, Input, Outcome, run
from benchmarks.stage import Stage
from benchmarks.tell import tell

SCRUBBED = "otlp_json_body_scrubbed"
"""Ours alone, with personal data scrubbed in the router; the collector's work otherwise."""
_FEW_BATCHES = 20
CASES = (*(form.value for form in Form), SCRUBBED)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many events and how often.

    Args:
        events: of the reference mix, for ours.
        baseline_events: the first so many of the same mix, for a baseline: their figures are rates.
        specification_events: and for the slowest of them.
        repeat: runs of ours a case; its figures are their medians.
        baseline_repeat: runs of each baseline.
    """

    events: int = 200_000
    baseline_events: int = 20_000
    specification_events: int = 5_000
    repeat: int = 3
    baseline_repeat: int = 1

    def of(self, contender: str) -> int:
        """How many events a contender routes."""
        share = {OURS: self.events, SPECIFICATION: self.specification_events}.get(contender, self.baseline_events)
        return min(share, self.events)


@dataclass(slots=True)
class Figures:
    """What a contender's runs of a case gave."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def records_per_s(self) -> float:
        """Input records a second, the median of the runs."""
        return median(outcome.reading.records_per_s for outcome in self.outcomes)

    @property
    def cpu_us_per_record(self) -> float:
        """CPU microseconds of the process an input record, the median of the runs."""
        return median(outcome.reading.cpu_us_per_record for outcome in self.outcomes)

    @property
    def counts_exact(self) -> bool:
        """Whether the output topics held exactly what they must, after every run."""
        return not any(outcome.differences for outcome in self.outcomes)

    def as_dict(self, records: int) -> dict[str, Any]:
        """Return the figures as they go into the JSON document."""
        readings = [outcome.reading for outcome in self.outcomes]
        return {
            "events": records,
            "runs": len(readings),
            "records_per_s": round(self.records_per_s),
            "cpu_us_per_record": round(self.cpu_us_per_record, 2),
            "cpu_us_per_record_runs": [round(reading.cpu_us_per_record, 2) for reading in readings],
            "records_per_s_runs": [round(reading.records_per_s) for reading in readings],
            "batches": min(reading.batches for reading in readings),
            "peak_mb": round(max(reading.peak_mb for reading in readings), 1),
            "redis_us_per_record": round(median(outcome.redis_us for outcome in self.outcomes), 2),
            "counts_exact": self.counts_exact,
            "differences": [told for outcome in self.outcomes for told in outcome.differences],
        }


def fill_input(stage: Stage, form: Form, count: int, topic: str = AUDIT_EVENTS.name, seed: int = SEED) -> Input:
    """Put the first `count` events of the mix into a topic that is made anew."""
    expected = Expected(form)
    records = stage.fill(topic, encode(expected.watch(events(count, seed)), form))
    return Input(form, topic, records, expected)


def measure(stage: Stage, name: str, sizes: Sizes, contenders: Sequence[str]) -> dict[str, Any]:
    """Measure a case and return it as it goes into the JSON document.

    Raises:
        ContenderFailed: a contender did not finish.
    """
    form = Form.JSON_BODY if name == SCRUBBED else Form(name)
    changes = {"pii": {"router": "scrub"}} if name == SCRUBBED else {}
    if name == SCRUBBED:
        contenders = (OURS,)
    inputs = _fill_inputs(stage, form, sizes, contenders)
    figures = {contender: Figures() for contender in contenders}
    for turn in range(max(sizes.repeat, sizes.baseline_repeat)):
        for contender in contenders:
            if turn < (sizes.repeat if contender == OURS else sizes.baseline_repeat):
                stage.clear()
                outcome = run(stage, contender, inputs[contender], changes)
                figures[contender].outcomes.append(outcome)
                tell_outcome(f"{name}: {contender}", outcome)
    stage.drop({given.topic for given in inputs.values()})
    if OURS in figures:
        _warn_of_few(name, figures[OURS])
    return _case(name, figures, sizes)


def tell_outcome(what: str, outcome: Outcome) -> None:
    """Print a run's figures as soon as they are there."""
    reading = outcome.reading
    exact = "counts exact" if not outcome.differences else f"counts WRONG: {'; '.join(outcome.differences)}"
    tell(
        f"{what}: {reading.records_per_s:,.0f} records/s, {reading.cpu_us_per_record:.1f} us of CPU a record, "
        f"peak {reading.peak_mb:.0f} MiB, {exact}"
    )


def _warn_of_few(name: str, figures: Figures) -> None:
    """Say so where ours had so few batches that what it does ahead of an acknowledgement flatters it."""
    batches = min(outcome.reading.batches for outcome in figures.outcomes)
    if batches < _FEW_BATCHES:
        tell(f"{name}: only {batches} batches were measured, which flatters ours: use more --events to compare")


def _fill_inputs(stage: Stage, form: Form, sizes: Sizes, contenders: Sequence[str]) -> dict[str, Input]:
    """An input for each contender; those that route as many events share one."""
    by_count: dict[int, Input] = {}
    for contender in contenders:
        count = sizes.of(contender)
        if count not in by_count:
            # Only the router's own topic can be its input.
            topic = AUDIT_EVENTS.name if count == sizes.events else f"benchmark-{form.value}-{count}"
            by_count[count] = fill_input(stage, form, count, topic)
    return {contender: by_count[sizes.of(contender)] for contender in contenders}


def _case(name: str, figures: Mapping[str, Figures], sizes: Sizes) -> dict[str, Any]:
    case: dict[str, Any] = {"name": name}
    own = figures.get(OURS)
    if own is not None:
        case |= own.as_dict(sizes.of(OURS))
    for baseline in BASELINES:
        if own is not None and baseline in figures and figures[baseline].records_per_s:
            case[f"ratio_vs_{baseline}"] = round(own.records_per_s / figures[baseline].records_per_s, 1)
    case["baselines"] = {
        contender: found.as_dict(sizes.of(contender)) for contender, found in figures.items() if contender != OURS
    }
    return case
