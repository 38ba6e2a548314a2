"""What tests of the collector share: the program, telemetry as OTLP/JSON, and what came out on Kafka."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from services import unavailable

from app.embedded.collector import CollectorServer, find_collector
from app.embedded.errors import ProgramMissing
from app.embedded.run_directory import RunDirectory
from otel.table import load_table

SIGNALS: dict[str, type[Message]] = {"logs": LogsData, "traces": TracesData, "metrics": MetricsData}
MOMENT = 1_732_270_800_123_456_789
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WITHIN_S = 60.0

Json = dict[str, Any]


def collector_program() -> Path:
    """The collector; the test is skipped where there is none."""
    try:
        return find_collector()
    except ProgramMissing as missing:
        unavailable(missing.what, missing.command)


@contextmanager
def running_collector(
    folder: Path, brokers: str, broker: Literal["mock", "real"], topics: dict[str, str]
) -> Iterator[CollectorServer]:
    """A collector of the test's own that writes its signals to `topics`."""
    program = collector_program()
    settings = {f"KAFKA_{signal.upper()}_TOPIC": topic for signal, topic in topics.items()}
    with RunDirectory.create(folder / "collector") as run:
        server = CollectorServer(run, brokers, broker, program, settings=settings)
        try:
            server.start()
            yield server
        except BaseException:
            for log in run.logs.glob("*.log"):
                print(f"--- {log.name}", log.read_text(errors="replace")[-4000:], sep="\n")
            raise
        finally:
            server.stop()


def value(plain: Any) -> Json:
    """A plain value as OTLP's AnyValue in JSON."""
    match plain:
        case bool():
            return {"boolValue": plain}
        case int():
            return {"intValue": str(plain)}
        case float():
            return {"doubleValue": plain}
        case dict():
            return {"kvlistValue": {"values": attributes(plain)}}
        case list():
            return {"arrayValue": {"values": [value(item) for item in plain]}}
        case _:
            return {"stringValue": plain}


def attributes(plain: Json) -> list[Json]:
    """A map as OTLP attributes in JSON."""
    return [{"key": key, "value": value(item)} for key, item in plain.items()]


def plain(any_value: Json) -> Any:
    """AnyValue in JSON as a plain value; the reverse of `value`."""
    ((kind, held),) = any_value.items()
    match kind:
        case "intValue":
            return int(held)
        case "kvlistValue":
            return plain_attributes(held.get("values", []))
        case "arrayValue":
            return [plain(item) for item in held.get("values", [])]
        case _:
            return held


def plain_attributes(found: Iterable[Json]) -> Json:
    """OTLP attributes in JSON as a map; the reverse of `attributes`."""
    return {item["key"]: plain(item["value"]) for item in found}


def log(body: Any, attrs: Json | None = None, **fields: Any) -> Json:
    """A log record."""
    return {"timeUnixNano": str(MOMENT), "body": value(body), "attributes": attributes(attrs or {}), **fields}


def logs(records: list[Json], resource: Json | None = None, scope: Json | None = None) -> Json:
    """An export request of logs."""
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": attributes(resource or {"service.name": "assistant"})},
                "scopeLogs": [{"scope": scope or {}, "logRecords": records}],
            }
        ]
    }


def send(server: CollectorServer, signal: Literal["logs", "traces", "metrics"], request: Json) -> None:
    """Send a request by OTLP/HTTP as JSON, and expect it to be taken whole."""
    answer = httpx.post(server.endpoint(signal), json=request, timeout=30.0, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert not answer.json().get("partialSuccess"), answer.text


class Topic:
    """All that lies in a topic, read as it comes."""

    def __init__(self, brokers: str, topic: str, signal: str) -> None:
        from confluent_kafka import Consumer

        self._kind = SIGNALS[signal]
        self._consumer = Consumer(
            {"bootstrap.servers": brokers, "group.id": "reader", "enable.auto.commit": False, "log_level": 0}
        )
        self._topic = topic
        self._assigned = False
        self.raw: list[bytes] = []

    def poll(self) -> list[bytes]:
        """What has come so far."""
        if not self._assigned:
            found = self._consumer.list_topics(self._topic, timeout=10).topics.get(self._topic)
            if found is None or found.error is not None or not found.partitions:
                return self.raw
            from confluent_kafka import TopicPartition

            self._consumer.assign([TopicPartition(self._topic, number, 0) for number in found.partitions])
            self._assigned = True
        for message in self._consumer.consume(500, timeout=0.3):
            if message.error() is None:
                self.raw.append(message.value())
        return self.raw

    def messages(self) -> list[Json]:
        """The messages decoded."""
        return [MessageToDict(self._kind.FromString(raw)) for raw in self.raw]  # type: ignore[attr-defined]

    def records(self) -> list[Json]:
        """The log records."""
        return [
            record
            for message in self.messages()
            for resource in message["resourceLogs"]
            for scope in resource["scopeLogs"]
            for record in scope["logRecords"]
        ]

    def wait(self, enough: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
        """Read until `enough` holds."""
        end = time.monotonic() + within_s
        while not enough():
            if time.monotonic() > end:
                pytest.fail(f"{what}: not within {within_s:.0f} s; {len(self.raw)} messages came")
            self.poll()

    def close(self) -> None:
        """Read no more."""
        self._consumer.close()


def outage_s() -> float:
    """How long the tests stop Kafka: FLYWHEEL_OUTAGE_S, 8 s where it is not set."""
    return float(os.environ.get("FLYWHEEL_OUTAGE_S") or 8.0)


TABLE = load_table()
_MARKED = re.compile("«([^»]*)»")


class Planted(NamedTuple):
    """Personal data in a text, and what must become of it."""

    text: str
    secrets: tuple[str, ...]
    clean: str


def planted(example: str, mask: str) -> Planted:
    """An example of the table."""
    return Planted(_MARKED.sub(r"\1", example), tuple(_MARKED.findall(example)), _MARKED.sub(mask, example))


KINDS = {
    name: planted(next(p for p in TABLE.patterns if p.name == name).positive[0], f"[{name}]")
    for name in dict.fromkeys(pattern.name for pattern in TABLE.patterns)
}
"""One example of each type, to be planted everywhere."""


def everywhere(found: Planted) -> dict[str, Any]:
    """A text in values of every shape."""
    return {
        "text": found.text,
        "nested": {"deep": {"list": ["before", found.text, {"more": [found.text]}]}},
        "json": json.dumps({"note": found.text, "inner": json.dumps({"note": found.text})}, ensure_ascii=False),
    }


class Rig(NamedTuple):
    """A collector and what it writes to."""

    server: CollectorServer
    topics: dict[str, Topic]
