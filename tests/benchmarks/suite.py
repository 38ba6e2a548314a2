"""All that one `make bench` measures, in order, and the document it leaves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.embedded.kafka.jars import KAFKA_VERSION
from benchmarks import extras, latency
from benchmarks.cases import SCRUBBED, Sizes, measure
from benchmarks.document import write
from benchmarks.machine import about_machine, now
from benchmarks.report import print_report
from benchmarks.run import BASELINES, OURS
from benchmarks.stage import Stage
from benchmarks.tell import tell

_BUSY = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    Args:
        cases: names of `benchmarks.cases.CASES`.
        sizes: how many events and how often.
        only_ours: leave the baselines out.
        latency: forms of the steady stream, `single` or `otlp`.
        memory: peak memory over few and over many events.
        claims: cost a record beside few and many claims.
        startup: time from the start of the process to the first batch.
    """

    cases: tuple[str, ...]
    sizes: Sizes
    only_ours: bool = False
    latency: tuple[str, ...] = ("single",)
    memory: bool = False
    claims: bool = False
    startup: bool = False


def run_suite(stage: Stage, options: Options, out: Path) -> bool:
    """Measure, print and write; tells whether all counts were exact.

    The document is written after every part, so that what was measured stays when a later part fails.
    """
    document = head(stage) | {
        "events": options.sizes.events,
        "baseline_events": {name: options.sizes.of(name) for name in BASELINES},
        "cases": [],
    }
    contenders = (OURS,) if options.only_ours else (OURS, *BASELINES)
    for name in options.cases:
        case = measure(stage, name, options.sizes, contenders)
        if name == SCRUBBED:
            document[SCRUBBED] = case
        else:
            document["cases"].append(case)
        write(out, document)
    for form in options.latency:
        document["latency_ms" if form == "single" else f"latency_{form}_ms"] = latency.measure(stage, form)
        write(out, document)
    for wanted, key, part in (
        (options.startup, "startup_s", extras.startup),
        (options.claims, "claims_cost_us", extras.claims),
        (options.memory, "memory_mb", extras.memory),
    ):
        if wanted:
            document[key] = part(stage)
            write(out, document)
    print_report(document)
    tell(f"written to {out}")
    measured = [*document["cases"], *([document[SCRUBBED]] if SCRUBBED in document else [])]
    figures = [figure for case in measured for figure in (case, *case["baselines"].values())]
    return all(figure["counts_exact"] for figure in figures)


def head(stage: Stage) -> dict[str, Any]:
    """What every document begins with: the machine, the time and the settings."""
    load = os.getloadavg()[0]
    if load > _BUSY:
        tell(f"the machine is busy (load {load:.1f}): figures will be worse than on a quiet one, ratios less so")
    kafka = stage.settings.kafka
    redis_version: Any = stage.redis.info("server")
    return {
        "machine": about_machine() | {"kafka": KAFKA_VERSION, "redis": redis_version["redis_version"]},
        "measured_at": now(),
        "settings": {
            "partitions": kafka.partitions,
            "compression": kafka.compression,
            "linger_ms": kafka.linger_ms,
            "routing": stage.settings.routing.model_dump(mode="json"),
        },
    }
