"""What metrics and traces cost the router: pairs of runs, one without them, one with them, over the same input."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from otlp_receiver import Receiver

from benchmarks.cases import fill_input, tell_outcome
from benchmarks.document import add
from benchmarks.messages import Form
from benchmarks.run import OURS, run
from benchmarks.stage import Stage
from benchmarks.tell import tell

BARE = "ours_bare"
TRACED_SHARE = 0.01
SCRAPE_S = 5.0
"""Three times as often as Prometheus is configured to. A scrape costs by the clock, not by the record: on a
busy machine, where a run takes longer, more of them fall on the same records."""
EVENTS = 400_000
"""A run, by default: in shorter ones what a worker does once (its first export and scrape load modules) weighs more."""
ALLOWED = 0.05
"""More than this share is too much."""


def measure(stage: Stage, events: int, pairs: int, out: Path, form: Form = Form.JSON_BODY) -> dict[str, Any]:
    """Return CPU microseconds a record without and with telemetry, and by how much the pairs differ.

    Adds them to the JSON document `out` as `telemetry`.

    `cost`: the median of the pairs' ratios less 1. `noise`: between the quartiles of those ratios. The order within a
    pair alternates, so that what drifts falls on both sides.
    """
    given = fill_input(stage, form, events)
    bare: list[float] = []
    full: list[float] = []
    exact = True
    with Receiver() as receiver:
        telemetry = {"telemetry": {"otlp_endpoint": receiver.url, "trace_sample_rate": TRACED_SHARE}}
        for turn in range(pairs):
            for contender in (BARE, OURS) if turn % 2 == 0 else (OURS, BARE):
                stage.clear()
                watched = contender == OURS
                with _scraped(stage) if watched else contextlib.nullcontext():
                    outcome = run(stage, contender, given, telemetry if watched else {})
                tell_outcome(f"telemetry, {contender}", outcome)
                (full if watched else bare).append(outcome.reading.cpu_us_per_record)
                exact &= not outcome.differences
    stage.drop([given.topic])
    ratios = [with_it / without for with_it, without in zip(full, bare, strict=True)]
    spread = quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    found = {
        "events": events,
        "pairs": pairs,
        "without_us": [round(value, 2) for value in bare],
        "with_us": [round(value, 2) for value in full],
        "cost": round(median(ratios) - 1.0, 4),
        "noise": round(spread[2] - spread[0], 4),
        "spans": len(receiver.spans),
        "counts_exact": exact,
    }
    add(out, "telemetry", found)
    tell(
        f"telemetry costs {found['cost']:+.1%} of CPU a record, half of the pairs lie within {found['noise']:.1%}"
        f" (at most {ALLOWED:.0%} is allowed); {found['spans']} spans"
    )
    return found


@contextlib.contextmanager
def _scraped(stage: Stage) -> Iterator[None]:
    """Scrape the worker for as long as the block runs."""
    url = f"http://127.0.0.1:{stage.settings.web.route_port}/metrics"
    stop = threading.Event()

    def scrape() -> None:
        with httpx.Client(trust_env=False, timeout=10.0) as client:
            while not stop.wait(SCRAPE_S):
                # It does not listen yet, or any more.
                with contextlib.suppress(httpx.HTTPError):
                    client.get(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
