"""docker/CAPACITY.md from the benchmarks' documents: what a load takes, and where the first bottleneck is.

    PYTHONPATH=tests python -m benchmarks.capacity [--events-per-s N]     writes docker/CAPACITY.md, or prints for N

Figures come from tests/benchmarks/results: `capacity.json` (`benchmarks.capacity_inputs`), `routing.json` (`make bench
ARGS=--full`), `scaling.json` (`make bench-scaling`) and `pii.json` (`make bench-pii`), copied there from var/bench. A
figure whose document is missing is left out, and said to be. What no benchmark can tell (prices, what a broker takes)
is an assumption and listed as one.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.capacity_sections import assignor, claiming, scaling

RESULTS = Path(__file__).with_name("results")
DOCUMENT = Path(__file__).parents[2] / "docker" / "CAPACITY.md"
LOADS = (10_000, 100_000, 1_000_000)
INPUTS = {
    "capacity": "PYTHONPATH=tests python -m benchmarks.capacity_inputs",
    "routing": "make bench ARGS=--full, then copy var/bench/routing.json",
    "scaling": "make bench-scaling, then copy var/bench/scaling.json",
    "pii": "make bench-pii, then copy var/bench/pii.json",
}
CASES = {"otlp_json_body": "OTLP, JSON bodies", "otlp_attributes": "OTLP, attributes", "single_json": "single JSON"}


_CORES = ("collectors, scrubbing", "routing workers", "Redis", "curation workers", "PostgreSQL")


@dataclass(frozen=True)
class Assumptions:
    """What the figures rest on besides measurement. Change them to your own."""

    utilisation: float = 0.6
    """Of a core, so that a burst or a lost worker does not make lag."""
    replication: int = 3
    broker_mb_per_s: float = 100.0
    """Written to one broker, its copies of others' partitions included."""
    shard_gb: float = 8.0
    postgres_cores: float = 16.0
    claims_window_s: float = 3600.0
    retention_days: float = 7.0
    core_hour: float = 0.04
    gb_hour: float = 0.005
    disk_gb_month: float = 0.08
    cross_zone_gb: float = 0.01
    """US dollars, of one core, of one GB of memory, of one GB of disk a month, of one GB to another zone."""


@dataclass(frozen=True)
class Need:
    """A line of the table: what is needed, in what unit, from which document; None where that is missing."""

    what: str
    amount: float | None
    unit: str
    source: str


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The documents that are there, by name."""
    return {
        name: orjson.loads((folder / f"{name}.json").read_bytes())
        for name in INPUTS
        if (folder / f"{name}.json").exists()
    }


def needs(documents: dict[str, dict[str, Any]], rate: float, case: str, given: Assumptions) -> list[Need]:
    """What `rate` events a second of a form take."""
    routing = _case(documents, case)
    measured = documents.get("capacity")
    shares = measured["shares"] if measured else {}
    sizes = measured["bytes_per_record"] if measured else {}
    in_bytes = sizes.get(f"{case}_gzip", sizes.get(f"{case}_plain"))
    cores = None if routing is None else rate * routing["cpu_us_per_record"] / 1e6 / given.utilisation
    redis = None if routing is None else rate * routing["redis_us_per_record"] / 1e6 / given.utilisation
    scrub = (documents.get("pii") or {}).get("collector_us")
    stored = shares.get("examples_and_feedback")
    claimed = None if not measured else rate * shares["claimed"] * given.claims_window_s * measured["claim_bytes"] / 1e9
    wire_in = None if in_bytes is None else rate * in_bytes / 1e6
    wire_out = None if not sizes else rate * shares["routed"] * sizes["routed_gzip"] / 1e6
    written = None if wire_in is None or wire_out is None else (wire_in + wire_out) * given.replication
    return [
        Need("collectors, scrubbing", scrub and rate * scrub["ours"] / 1e6 / given.utilisation, "cores", "pii"),
        Need("routing workers", cores, "cores, one a worker", "routing"),
        Need("partitions of `otel-audit-events`", cores and 2 * math.ceil(cores), "at least; two a worker", "routing"),
        Need("Redis", redis, "cores", "routing"),
        Need("Redis, claims of an hour", claimed, "GB", "capacity"),
        Need("Redis shards", _shards(redis, claimed, given), "masters", "routing, capacity"),
        Need("Kafka in", wire_in, "MB/s, compressed", "capacity"),
        Need("Kafka out of the router", wire_out, "MB/s, compressed", "capacity"),
        Need("brokers", written and max(3, math.ceil(written / given.broker_mb_per_s)), "", "capacity"),
        Need("Kafka's disk", written and _disk_tb(wire_in, given), "TB, of the first topic", "capacity"),
        Need("curation, records stored", stored and rate * stored, "records/s", "capacity"),
        Need("curation workers", _curation(measured, rate, "cpu_us_per_record", given), "cores", "capacity"),
        Need("PostgreSQL", _curation(measured, rate, "postgres_cpu_us_per_record", given), "cores", "capacity"),
    ]


def _case(documents: dict[str, dict[str, Any]], name: str) -> dict[str, Any] | None:
    cases = documents.get("routing", {}).get("cases", [])
    return next((case for case in cases if case["name"] == name), None)


def _shards(cores: float | None, memory: float | None, given: Assumptions) -> float | None:
    return None if cores is None or memory is None else max(math.ceil(cores), math.ceil(memory / given.shard_gb))


def _disk_tb(wire_in: float | None, given: Assumptions) -> float | None:
    return wire_in and wire_in * 86400 * given.retention_days * given.replication / 1e6


def _curation(measured: dict[str, Any] | None, rate: float, whose: str, given: Assumptions) -> float | None:
    if not measured:
        return None
    stored = rate * measured["shares"]["examples_and_feedback"]
    return float(stored * measured["curation"][whose] / 1e6 / given.utilisation)


def money(found: list[Need], given: Assumptions) -> float | None:
    """US dollars a month; None where a part of it is not known."""
    by_name = {need.what: need.amount for need in found}
    cores = [by_name[name] for name in _CORES]
    memory, disk = by_name["Redis, claims of an hour"], by_name["Kafka's disk"]
    wire = [by_name["Kafka in"], by_name["Kafka out of the router"]]
    parts = [*cores, memory, disk, *wire]
    if any(part is None for part in parts):
        return None
    hours = 730.0
    known = [float(part or 0.0) for part in parts]
    traffic = sum(known[-2:]) * 3600 * hours / 1e3 * (given.replication - 1) * given.cross_zone_gb
    return (
        sum(known[: len(_CORES)]) * hours * given.core_hour
        + known[-4] * hours * given.gb_hour
        + known[-3] * 1e3 * given.disk_gb_month
        + traffic
    )


def bottleneck(documents: dict[str, dict[str, Any]], given: Assumptions) -> list[tuple[str, float]]:
    """(part that cannot be doubled by adding another, events a second at which one of it is full), lowest first."""
    found = []
    measured, routing = documents.get("capacity"), _case(documents, "otlp_json_body")
    if measured:
        share = measured["shares"]["examples_and_feedback"]
        cost = measured["curation"]["postgres_cpu_us_per_record"]
        rows = 1e6 * given.postgres_cores * given.utilisation / cost
        found.append((f"one PostgreSQL of {given.postgres_cores:g} cores, storing examples", rows / share))
        per_event = measured["shares"]["claimed"] * given.claims_window_s * measured["claim_bytes"]
        found.append(("one Redis master's memory, holding an hour's claims", given.shard_gb * 1e9 / per_event))
    if routing:
        found.append(("one Redis master's core", 1e6 * given.utilisation / routing["redis_us_per_record"]))
        found.append(("one routing worker", 1e6 * given.utilisation / routing["cpu_us_per_record"]))
    return sorted(found, key=lambda item: item[1])


def render(documents: dict[str, dict[str, Any]], given: Assumptions | None = None) -> str:
    """The document."""
    given = given or Assumptions()
    lines = [
        "# Capacity",
        "",
        "Generated by `PYTHONPATH=tests python -m benchmarks.capacity` from `tests/benchmarks/results`: do not edit.",
        "The load is the reference mix of `tests/benchmarks/README.md`, as OTLP with JSON bodies from the collector.",
        "",
    ]
    for name, command in INPUTS.items():
        if name in documents:
            machine = documents[name].get("machine", {})
            lines.append(f"- `{name}.json`: {machine.get('processor', 'machine not told')}, {_when(documents[name])}")
        else:
            lines.append(f"- `{name}.json` is **missing**: what rests on it is left out below (`{command}`)")
    case = "otlp_json_body"
    tables = [needs(documents, rate, case, given) for rate in LOADS]
    lines += ["", "| what | " + " | ".join(f"{rate:,} events/s" for rate in LOADS) + " | unit | from |"]
    lines.append("|---|" + "--:|" * len(LOADS) + "---|---|")
    for row in zip(*tables, strict=True):
        amounts = " | ".join(_shown(need.amount) for need in row)
        lines.append(f"| {row[0].what} | {amounts} | {row[0].unit} | {row[0].source} |")
    costs = [money(table, given) for table in tables]
    lines.append("| money | " + " | ".join(_shown(cost) for cost in costs) + " | $ a month | all |")
    lines += ["", "## The first bottleneck", ""]
    walls = bottleneck(documents, given)
    for number, (part, rate) in enumerate(walls, 1):
        lines.append(f"{number}. {part}: full at {_shown(rate)} events/s")
    lines += ["", *_changes(walls), "", *scaling(documents), "", *assignor(documents), ""]
    lines += [*claiming(documents), "", "## Assumed, not measured", ""]
    lines += ["| assumption | value |", "|---|--:|"]
    lines += [f"| `{name}` | {getattr(given, name):g} |" for name in given.__dataclass_fields__]
    lines += [
        "",
        "CPU of a record was measured with Kafka and Redis on the same cores. Of PostgreSQL only CPU was:",
        "its log to disk (a row is about a kilobyte) may be full before its cores are.",
        "Rates beyond what one machine gives are multiples of it, not measurements: routing shares no state but Redis",
        "and Kafka, and curation none but SQL. Where nothing is measured, nothing is said.",
    ]
    return "\n".join(lines) + "\n"


def _changes(walls: list[tuple[str, float]]) -> list[str]:
    if not any("PostgreSQL" in part for part, _ in walls):
        return ["What was measured is doubled by adding another of it."]
    return [
        "Routing, claims and brokers grow by adding more of them. PostgreSQL does not: every violation, trigger and",
        "review is a row of one database. Beyond that rate examples must be thinned before they are stored",
        "(`class_shares` thins later, when a cycle opens), or each data domain gets a database of its own. Neither is",
        "built.",
    ]


def _when(document: dict[str, Any]) -> str:
    return str(document.get("measured_at", "time not told"))


def _shown(amount: float | None) -> str:
    if amount is None:
        return "?"
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"


def main() -> None:
    """Print, and write the document where the usual loads are asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.capacity", description=__doc__)
    parser.add_argument("--events-per-s", type=float, help="one load, of all forms, printed only")
    asked = parser.parse_args()
    documents = load()
    if asked.events_per_s is None:
        DOCUMENT.write_text(render(documents))
        print(f"written to {DOCUMENT}")
        return
    for case, title in CASES.items():
        print(title)
        for need in needs(documents, asked.events_per_s, case, Assumptions()):
            print(f"  {need.what}: {_shown(need.amount)} {need.unit}")


if __name__ == "__main__":
    main()
