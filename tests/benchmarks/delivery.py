"""What exactly-once delivery costs in throughput: pairs of runs, one of each delivery, over the same input."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import fill_input, tell_outcome
from benchmarks.document import add
from benchmarks.messages import Form
from benchmarks.run import OURS, run
from benchmarks.stage import Stage
from benchmarks.tell import tell

DELIVERIES = ("at_least_once", "exactly_once")
ALLOWED = 0.25
"""More than this share of the throughput is too much."""


def measure(stage: Stage, events: int, pairs: int, form: Form, out: Path) -> dict[str, Any]:
    """Return records a second of either delivery; adds them to the JSON document `out` as `delivery`.

    `cost`: 1 less the median of the pairs' ratios. The order within a pair alternates, so that what drifts falls on
    both sides.
    """
    given = fill_input(stage, form, events)
    rates: dict[str, list[float]] = {name: [] for name in DELIVERIES}
    cpu: dict[str, list[float]] = {name: [] for name in DELIVERIES}
    exact = True
    for turn in range(pairs):
        for name in DELIVERIES if turn % 2 == 0 else reversed(DELIVERIES):
            stage.clear()
            outcome = run(stage, OURS, given, {"routing": {"delivery": name}})
            tell_outcome(f"{form.value}, {name}", outcome)
            rates[name].append(outcome.reading.records_per_s)
            cpu[name].append(outcome.reading.cpu_us_per_record)
            exact &= not outcome.differences
    stage.drop([given.topic])
    ratios = [once / least for least, once in zip(*(rates[name] for name in DELIVERIES), strict=True)]
    found = {
        "form": form.value,
        "events": events,
        "pairs": pairs,
        "records_per_s": {name: round(median(values)) for name, values in rates.items()},
        "records_per_s_runs": {name: [round(value) for value in values] for name, values in rates.items()},
        "cpu_us_per_record": {name: round(median(values), 2) for name, values in cpu.items()},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cost": round(1.0 - median(ratios), 4),
        "counts_exact": exact,
    }
    tell(f"exactly_once costs {found['cost']:+.1%} of the throughput (at most {ALLOWED:.0%} is allowed)")
    add(out, "delivery", found)
    return found
