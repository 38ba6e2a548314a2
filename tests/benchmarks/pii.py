"""`make bench-pii`: what finding personal data costs and how well it is done; `var/bench/pii.json`.

Times are CPU time of this process, the least of the rounds, on records of 500 bytes of which one in ten holds personal
data (a quarter of those twice). Quality is measured on labelled texts of the test data (FLYWHEEL_TEST_DATA), beside
Presidio's pattern recognizers where they are installed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from rich.console import Console
from rich.table import Table

from benchmarks import pii_presidio
from benchmarks.machine import about_machine, now
from benchmarks.pii_quality import Score, load, score
from benchmarks.pii_records import make_records, requests
from benchmarks.tell import tell
from otel.scrub import Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT = REPOSITORY / "var" / "bench" / "pii.json"
MOST = {"clean_us": 6.0, "dirty_us": 25.0}
"""What an event may cost at most, on a quiet machine."""

Event = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where the quality misses its mark."""
    parser = argparse.ArgumentParser(prog="make bench-pii", description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--no-collector", action="store_true", help="do not measure the collector")
    asked = parser.parse_args(arguments)
    scrubber = Scrubber(load_table(), SubjectTokenizer(b"a key of the benchmark, 32 bytes"))
    figures: dict[str, Any] = {"machine": about_machine(), "measured_at": now()}
    figures |= _speed(scrubber, asked.records, asked.rounds)
    figures |= _collector() if not asked.no_collector else _absent("collector_us", "not asked for (--no-collector)")
    figures |= _quality(scrubber, make_records(2_000))
    figures["per_type_clear"] = (
        None if figures["per_type"] is None else all(found["clears"] for found in figures["per_type"].values())
    )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    for name, most in MOST.items():
        tell(f"{name}: {figures[name]:g} (at most {most:g}){'' if figures[name] <= most else '  EXCEEDED'}")
    tell(f"written to {asked.out}")
    return 1 if figures["per_type_clear"] is False else 0


# --- speed -------------------------------------------------------------------------------------------------------


def _speed(scrubber: Scrubber, count: int, rounds: int) -> dict[str, Any]:
    """CPU microseconds a record of each form; `clean_us` and `dirty_us` are those of decoded events."""
    records = make_records(count)
    groups: dict[str, list[Event]] = {
        "clean": [record.event for record in records if not record.planted],
        "dirty": [record.event for record in records if record.planted],
        "dirty_one_finding": [record.event for record in records if record.planted == 1],
        "dirty_two_findings": [record.event for record in records if record.planted == 2],
    }
    groups["clean_with_subject"] = [event | {"subject_id": f"u-{n}"} for n, event in enumerate(groups["clean"])]
    forms: dict[str, dict[str, float]] = {}
    for form, prepare in (("event", _events), ("otlp_json_body", _bodies), ("otlp_attributes", _attributes)):
        forms[form] = {}
        for name, events in groups.items():
            units, scrub = prepare(scrubber, events[: count // 4])
            forms[form][name] = round(_cost(units, scrub, rounds) / min(len(events), count // 4) * 1e6, 2)
        tell(f"{form}, CPU us a record: {forms[form]}")
    size = round(sum(len(orjson.dumps(record.event)) for record in records) / count)
    return {
        "clean_us": forms["event"]["clean"],
        "dirty_us": forms["event"]["dirty"],
        "us_per_record": forms,
        "record_bytes": size,
        "records": count,
    }


Prepared = tuple[Sequence[bytes], Callable[[Sequence[bytes]], tuple[list[Any], Callable[[Any], Any]]]]


def _events(scrubber: Scrubber, events: list[Event]) -> Prepared:
    return [orjson.dumps(event) for event in events], lambda units: (
        [orjson.loads(unit) for unit in units],
        scrubber.scrub_event,
    )


def _bodies(scrubber: Scrubber, events: list[Event]) -> Prepared:
    return requests(events, attributes=False), lambda units: (_parsed(units), scrubber.scrub_otlp)


def _attributes(scrubber: Scrubber, events: list[Event]) -> Prepared:
    return requests(events, attributes=True), lambda units: (_parsed(units), scrubber.scrub_otlp)


def _parsed(units: Sequence[bytes]) -> list[Any]:
    return [ExportLogsServiceRequest.FromString(unit) for unit in units]


def _cost(
    units: Sequence[bytes],
    prepare: Callable[[Sequence[bytes]], tuple[list[Any], Callable[[Any], Any]]],
    rounds: int,
) -> float:
    """CPU seconds to scrub all units once, on fresh copies: the least of the rounds, as other load only ever adds."""
    times = []
    for _ in range(rounds + 1):
        copies, scrub = prepare(units)
        gc.collect()
        gc.disable()
        began = time.process_time()
        for copy in copies:
            scrub(copy)
        times.append(time.process_time() - began)
        gc.enable()
    return min(times)


def _collector() -> dict[str, Any]:
    """What scrubbing costs the collector, where it is built."""
    try:
        from benchmarks.pii_collector import measure
    except ImportError as error:
        return _absent("collector_us", f"the collector's benchmark cannot be loaded ({error})")
    try:
        return {"collector_us": dict(measure())}
    except RuntimeError as error:
        return _absent("collector_us", str(error))


def _absent(name: str, why: str) -> dict[str, Any]:
    tell(f"{name}: not measured. {why}")
    return {name: None, f"{name}_reason": why}


# --- quality -----------------------------------------------------------------------------------------------------


def _quality(scrubber: Scrubber, records: Sequence[Any]) -> dict[str, Any]:
    """Precision and recall per type, ours and Presidio's, and what Presidio takes for a record."""
    folder = Path(os.environ.get("FLYWHEEL_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        return _absent("per_type", f"there is no test data in {folder}") | {"presidio": None}
    texts = load(folder)
    ours = score(texts, lambda text: [(found.type, found.start, found.end) for found in scrubber.find(text)])
    _print("ours", ours)
    figures: dict[str, Any] = {"per_type": _figures(ours)}
    if not pii_presidio.is_installed():
        return figures | _absent("presidio", pii_presidio.INSTALL)
    find = pii_presidio.finder()
    theirs = score(texts, find)
    _print("Presidio's defaults", theirs)
    lines = [orjson.dumps(record.event).decode() for record in records[:300]]
    cost = {
        "record_us": _text_cost(find, lines),
        "ours_record_us": _text_cost(scrubber.find, lines),
        "text_us": _text_cost(find, [text["full_text"] for text in texts[:300]]),
        "ours_text_us": _text_cost(scrubber.find, [text["full_text"] for text in texts[:300]]),
    }
    tell(f"Presidio, CPU us: {cost}")
    return figures | {"presidio": {"per_type": _figures(theirs), **cost}}


def _text_cost(find: Callable[[str], object], texts: Sequence[str]) -> float:
    """CPU microseconds to find what stands in one text."""
    times = []
    for _ in range(4):
        began = time.process_time()
        for text in texts:
            find(text)
        times.append(time.process_time() - began)
    return round(median(times[1:]) / len(texts) * 1e6, 1)


def _figures(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    return {
        label: {
            "precision": round(found.precision, 4),
            "recall": round(found.recall, 4),
            "n": found.n,
            "missed": found.missed,
            "wrong": found.wrong,
            "clears": found.clears,
        }
        for label, found in scores.items()
    }


def _print(whose: str, scores: Mapping[str, Score]) -> None:
    table = Table("type", "n", "recall", "precision", "missed", "wrong", title=whose)
    for label, found in scores.items():
        numbers = (f"{found.n}", f"{found.recall:.3f}", f"{found.precision:.3f}", f"{found.missed}", f"{found.wrong}")
        table.add_row(label, *numbers)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
