"""What scrubbing costs the collector, in microseconds of its CPU a log record: the project's statements against the
redaction processor with the same patterns, each less what a collector that scrubs nothing takes.

    PYTHONPATH=tests python -m benchmarks.pii_collector [--records N] [--rounds N]

The records are events of about 500 bytes as JSON text, one in ten with personal data. A request is answered once its
records have passed all processors, and no answer counts that is not a full success.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from app.embedded.collector import CollectorServer, find_collector
from app.embedded.run_directory import RunDirectory
from benchmarks.meter import process_cpu_s
from otel.collector_config import configuration
from otel.collector_patterns import key_rules, type_rules
from otel.table import PiiTable, load_table

BATCH = 500
DIRTY_SHARE = 10
_WORDS = Path(__file__).with_name("words.txt")
_PII = (
    "write to {n}.lovelace@example.com",
    "call +1 (415) 555-2{n:03d}",
    "card 4111 1111 1111 1111",
    "from 192.168.{n}.17",
    "SSN 123-45-6{n:03d}",
    "password=hunter{n}",
    "IBAN GB82WEST12345698765432",
    "from 2001:db8::{n}:7334",
)


def measure(records: int = 20_000, rounds: int = 3, program: Path | None = None) -> dict[str, float]:
    """CPU of the collector process for scrubbing, in microseconds a record: medians over the rounds.

    Raises:
        ProgramMissing: there is no collector (FLYWHEEL_OTELCOL names one, docker/install/collector.sh builds it).
        RuntimeError: a record was refused.
    """
    found = program or find_collector()
    table = load_table()
    processors = {"none": {}, "redaction": {"redaction": redaction(table)}, "ours": _ours(table)}
    costs: dict[str, list[float]] = {name: [] for name in processors}
    batches = list(_requests(records))
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for name, processor in processors.items():
                with _collector(Path(folder) / f"{name}-{turn}", processor, found) as server:
                    _send(server, batches[:4])  # the first ones pay for warming up
                    before = _cpu_s(server)
                    _send(server, batches)
                    costs[name].append((_cpu_s(server) - before) / records * 1e6)
    base = statistics.median(costs["none"])
    return {name: round(statistics.median(costs[name]) - base, 2) for name in ("redaction", "ours")}


def redaction(table: PiiTable) -> dict[str, Any]:
    """The redaction processor with the table's patterns."""
    forms = [f"(?:{form.before})(?:{form.value})" for rule in type_rules(table) for form in rule.forms if not rule.head]
    secrets = [
        f"(?:{rule.head})(?:{'|'.join(f'{form.before}(?:{form.value})' for form in rule.forms)})"
        for rule in type_rules(table)
        if rule.head
    ]
    patterns = [pattern.replace("$", "$$") for pattern in (*forms, *secrets)]
    return {
        "allow_all_keys": True,
        "blocked_values": patterns,
        "blocked_key_patterns": [key_rules(table).secret.replace("$", "$$")],
    }


def _ours(table: PiiTable) -> dict[str, Any]:
    return {"transform/pii": configuration(table)["processors"]["transform/pii"]}


@contextmanager
def _collector(folder: Path, processors: Mapping[str, Any], program: Path) -> Iterator[CollectorServer]:
    folder.mkdir(parents=True)
    committed = configuration(load_table())
    pipeline = {"receivers": ["otlp"], "processors": list(processors), "exporters": ["nop"]}
    config = {
        "extensions": {"health_check": committed["extensions"]["health_check"]},
        "receivers": committed["receivers"],
        "processors": dict(processors),
        "exporters": {"nop": {}},
        "service": {
            "extensions": ["health_check"],
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
            "pipelines": {"logs": pipeline},
        },
    }
    path = folder / "collector.yaml"
    path.write_text(yaml.safe_dump(config, width=1_000_000))
    with RunDirectory.create(folder / "run") as run:
        server = CollectorServer(run, "unused", "mock", program, (path,), {"GOMAXPROCS": "1"})
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _send(server: CollectorServer, batches: list[bytes]) -> None:
    headers = {"Content-Type": "application/x-protobuf"}
    with httpx.Client(trust_env=False, timeout=120.0) as client:
        for batch in batches:
            answer = client.post(server.endpoint("logs"), content=batch, headers=headers).raise_for_status()
            refused = ExportLogsServiceResponse.FromString(answer.content).partial_success.rejected_log_records
            if refused:
                raise RuntimeError(f"the collector refused {refused} records")


def _cpu_s(server: CollectorServer) -> float:
    """User and system time of the collector process, in seconds."""
    process = server.process
    if process is None or process.pid is None:
        raise RuntimeError("the collector does not run")
    return process_cpu_s(process.pid)


def _requests(records: int) -> Iterator[bytes]:
    draw = random.Random(7)
    words = _WORDS.read_text().split()
    for start in range(0, records, BATCH):
        request = ExportLogsServiceRequest()
        resource = request.resource_logs.add()
        name = resource.resource.attributes.add()
        name.key, name.value.string_value = "service.name", "assistant"
        scope = resource.scope_logs.add()
        for number in range(start, min(start + BATCH, records)):
            record = scope.log_records.add()
            record.time_unix_nano = 1_732_270_800_000_000_000 + number
            record.body.string_value = json.dumps(_event(number, draw, words), separators=(",", ":"))
        yield request.SerializeToString()


def _event(number: int, draw: random.Random, words: list[str]) -> dict[str, Any]:
    prompt = " ".join(draw.choices(words, k=14))
    if number % DIRTY_SHARE == 0:
        prompt += ", " + _PII[number // DIRTY_SHARE % len(_PII)].format(n=draw.randrange(10, 200))
    return {
        "event_id": f"run-{draw.getrandbits(32):08x}-{number}",
        "event_type": "model_inference",
        "timestamp": f"2026-11-22T10:11:{number % 60:02d}.{draw.randrange(10**6):06d}Z",
        "trace_id": f"{draw.getrandbits(128):032x}",
        "model_id": "assistant",
        "risk_level": "low",
        "prompt": prompt,
        "response": " ".join(draw.choices(words, k=18)),
        "constitutional_hash": "cdd01ef066bc6cf2",
        "compliance_score": round(draw.random(), 4),
        "violations": [],
        "status": "success",
        "prompt_tokens": draw.randrange(500),
    }


def main() -> None:
    """The command of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    costs = measure(options.records, options.rounds)
    print(json.dumps(costs | {"share": round(costs["ours"] / costs["redaction"], 3)}))


if __name__ == "__main__":
    main()
