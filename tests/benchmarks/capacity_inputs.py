"""What a capacity model needs and no other benchmark measures: sizes, shares, a claim's memory, curation, the assignor.

PYTHONPATH=tests python -m benchmarks.capacity_inputs      writes tests/benchmarks/results/capacity.json; a minute
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa

from agents.curation.curator import CuratedRecord, Curator
from app.embedded.postgres import PostgresServer
from app.embedded.run_directory import RunDirectory
from app.settings import Settings
from app.store import Database
from app.wiring import curation_rules
from benchmarks.assignor import GROUPS, assignment
from benchmarks.claiming import claim_bytes, claiming
from benchmarks.machine import about_machine, now
from benchmarks.messages import Form, encode
from benchmarks.mix import Event, events
from benchmarks.plain import TOPICS, classify, is_routine, is_sampled
from models.example import Lineage

RESULT = Path(__file__).with_name("results") / "capacity.json"
EVENTS = 50_000
CURATED = 6_000
BATCH = 500
ROUTED_EXAMPLE = Path(__file__).parents[2] / "models" / "examples" / "RoutedEvent.violation.json"
ADDED = ("event_classification", "processing_timestamp", "constitutional_hash", "acgs_version", "routing_metadata")


Item = TypeVar("Item")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write. Parts that are not asked for stay as they were, and each part that is tells its own time."""
    parser = argparse.ArgumentParser(prog="benchmarks.capacity_inputs", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_PARTS, help="measure these parts anew and keep the others")
    asked = parser.parse_args(arguments)
    measured_at = now()
    document: dict[str, Any] = {
        "machine": about_machine(),
        "measured_at": measured_at,
        "events": EVENTS,
    }
    if asked.only:
        document = orjson.loads(RESULT.read_bytes())
        document["measured_anew"] = document.get("measured_anew", {}) | dict.fromkeys(asked.only, measured_at)
    with tempfile.TemporaryDirectory() as folder, RunDirectory.create(Path(folder)) as run:
        document |= {name: _PARTS[name](run) for name in asked.only or _PARTS}
    RESULT.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    print(f"written to {RESULT}")


def shares() -> dict[str, float]:
    """Of all events of the reference mix: those that are claimed, routed, and stored by curation."""
    seen: set[str] = set()
    claimed = routed = examples = observed = 0
    for event in events(EVENTS):
        kind = classify(event)
        if is_routine(event, kind) or not is_sampled(event["event_id"], Form.JSON_BODY.service, kind):
            continue
        claimed += 1
        if event["event_id"] in seen:
            continue
        seen.add(event["event_id"])
        routed += 1
        examples += kind in {"constitutional_violation", "model_optimization_trigger", "human_feedback"}
        observed += kind == "policy_evaluation"
    counts = {"claimed": claimed, "routed": routed, "examples_and_feedback": examples, "observations": observed}
    return {name: round(count / EVENTS, 4) for name, count in counts.items()}


def sizes() -> dict[str, float]:
    """Bytes of a record in Kafka: as producers' messages, plain and compressed, and as the router's output, compressed.

    The collector's messages hold a thousand records and are compressed with gzip, as the router's batches are.
    """
    found: dict[str, float] = {}
    for form in Form:
        count = plain = packed = 0
        for message in encode(events(10_000), form, per_message=1000):
            count, plain = count + message.records, plain + len(message.value)
            packed += len(gzip.compress(message.value, 6))
        found[f"{form.value}_plain"] = round(plain / count, 1)
        # Single events are compressed by the producer's batches, which this does not model.
        if form is not Form.SINGLE:
            found[f"{form.value}_gzip"] = round(packed / count, 1)
    routed = [b"\n".join(batch) for batch in _batched(_routed(10_000), 1000)]
    count = sum(batch.count(b"\n") + 1 for batch in routed)
    found["routed_gzip"] = round(sum(len(gzip.compress(batch, 6)) for batch in routed) / count, 1)
    return found


def _routed(count: int) -> Iterator[bytes]:
    """Events that are routed, with what enrichment adds."""
    added = json.loads(ROUTED_EXAMPLE.read_text())
    for number, event in enumerate(events(count)):
        if not is_routine(event, classify(event)):
            identity = {"service": "assistant", "id": event["event_id"], "fingerprint": event["event_id"][::-1]}
            metadata = added["routing_metadata"] | {"identity": identity}
            more = {name: added[name] for name in ADDED} | {"routing_metadata": metadata}
            yield orjson.dumps(event | more | {"processing_timestamp": f"2026-01-01T00:00:{number % 60:02d}.000000Z"})


def curation(run: RunDirectory) -> dict[str, float]:
    """CPU that storing an example takes, in microseconds: of the curation process, and of PostgreSQL.

    Not the time on the clock, which other work on the machine would lengthen. PostgreSQL does not sync to disk here.
    """
    server = PostgresServer(run)
    server.start()
    database = Database(server.url())
    try:
        database.migrate()
        curator = Curator(database, curation_rules(Settings(data_dir=run.data)))
        records = [_curated(number, event) for number, event in enumerate(islice(_examples(), CURATED))]
        curator.store(records[:BATCH])
        ours, theirs = time.process_time(), _cpu_s(server)
        for batch in _batched(records[BATCH:], BATCH):
            curator.store(batch)
        ours, theirs = time.process_time() - ours, _cpu_s(server) - theirs
        with database.read() as connection:
            stored = connection.execute(sa.text("SELECT count(*) FROM examples")).scalar_one()
        if stored != CURATED:
            raise RuntimeError(f"{stored} of {CURATED} examples were stored")
    finally:
        database.close()
        server.stop()
    rest = CURATED - BATCH
    return {
        "records": rest,
        "cpu_us_per_record": round(ours / rest * 1e6, 1),
        "postgres_cpu_us_per_record": round(theirs / rest * 1e6, 1),
    }


def _cpu_s(server: PostgresServer) -> float:
    """CPU seconds of a PostgreSQL so far, with the processes that serve its connections."""
    postmaster = server.process.pid if server.process else None
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" (")
            fields = rest.rpartition(")")[2].split()
            if postmaster in {int(pid), int(fields[1])}:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _examples() -> Iterator[Event]:
    seen: set[str] = set()
    for event in events(12 * CURATED):
        kind = classify(event)
        if kind in {"constitutional_violation", "model_optimization_trigger"} and event["event_id"] not in seen:
            seen.add(event["event_id"])
            yield event | {"event_classification": kind}


def _curated(number: int, event: Event) -> CuratedRecord:
    identity = {"service": "assistant", "id": event["event_id"], "fingerprint": event["event_id"]}
    routed = event | {"routing_metadata": {"identity": identity, "sample_rate": 1.0}}
    topic, _ = TOPICS[event["event_classification"]]
    return CuratedRecord(routed, Lineage(topic=topic, partition=0, offset=number))


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


_PARTS: dict[str, Callable[[RunDirectory], Any]] = {
    "shares": lambda _: shares(),
    "bytes_per_record": lambda _: sizes(),
    "claim_bytes": claim_bytes,
    "claiming": claiming,
    "curation": curation,
    "assignor": lambda _: [assignment(partitions, workers) for partitions, workers in GROUPS],
}


if __name__ == "__main__":
    main()
