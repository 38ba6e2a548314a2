"""The document as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cases import SCRUBBED
from benchmarks.run import BASELINES, OURS

_WIDTH = 110
"""Columns of the table where nobody says how many fit (a pipe, a log)."""

TARGETS = {"otlp_json_body": (9.0, 20.0), "otlp_attributes": (16.0, 12.0), "single_json": (10.0, 20.0)}
"""CPU microseconds a record at most, and records a second against plain Faust at least, on a quiet machine."""


def print_report(document: dict[str, Any]) -> None:
    """Print what was measured."""
    console = Console(soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    measured = [*document["cases"], *([document[SCRUBBED]] if SCRUBBED in document else [])]
    if measured:
        console.print(_table(measured))
    for case in document["cases"]:
        console.print(_ratios(case), highlight=False, markup=False)
    for key in ("latency_ms", "latency_otlp_ms", "startup_s", "claims_cost_us", "memory_mb"):
        if key in document:
            console.print(f"{key}: {document[key]}", highlight=False, markup=False)


def _table(cases: list[dict[str, Any]]) -> Table:
    table = Table(title="Routing, one worker process")
    table.add_column("input")
    table.add_column("contender")
    for heading in ("events", "records/s", "CPU us/record", "peak MiB", "ours is"):
        table.add_column(heading, justify="right")
    table.add_column("counts")
    for case in cases:
        rows = {OURS: case, **case["baselines"]}
        for number, (contender, figures) in enumerate(rows.items()):
            ratio = case.get(f"ratio_vs_{contender}")
            table.add_row(
                case["name"] if number == 0 else "",
                contender,
                f"{figures['events']:,}",
                f"{figures['records_per_s']:,}",
                f"{figures['cpu_us_per_record']:.1f}",
                f"{figures['peak_mb']:.0f}",
                "" if ratio is None else f"{ratio:.1f} x",
                "exact" if figures["counts_exact"] else "WRONG",
                end_section=number == len(rows) - 1,
            )
    return table


def _ratios(case: dict[str, Any]) -> str:
    cpu_target, ratio_target = TARGETS[case["name"]]
    told = [f"{case['cpu_us_per_record']:.1f} us of CPU a record (target {cpu_target:g})"]
    for baseline in BASELINES:
        ratio = case.get(f"ratio_vs_{baseline}")
        if ratio is not None:
            target = f" (target {ratio_target:g})" if baseline == "plain_faust" else ""
            told.append(f"{ratio:.1f} x {baseline}{target}")
    return f"{case['name']}: {', '.join(told)}"
