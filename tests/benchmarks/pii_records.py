"""Audit events of about 500 bytes, some with personal data, as JSON events and as OTLP requests; seeded."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from benchmarks.text import Sentences

DIRTY_SHARE = 0.1
TWO_FINDINGS = 0.25
"""Of the records with personal data, how many hold two; the others hold one."""
SIZE = 500
BATCH = 100
"""Log records of one request."""


@dataclass(frozen=True, slots=True)
class Record:
    """An event, and how many pieces of personal data stand in it."""

    event: dict[str, Any]
    planted: int


def make_records(count: int, seed: int = 7) -> list[Record]:
    """So many records, one in ten with personal data."""
    draw = random.Random(seed)
    sentences = Sentences(draw, 2_000)
    return [_record(draw, sentences, number) for number in range(count)]


def requests(events: list[dict[str, Any]], *, attributes: bool) -> list[bytes]:
    """Events as serialised OTLP requests: each as a text of JSON in the body, or as attributes."""
    made = []
    for start in range(0, len(events), BATCH):
        request = ExportLogsServiceRequest()
        resource = request.resource_logs.add()
        resource.resource.attributes.add(key="service.name", value=AnyValue(string_value="assistant"))
        scope = resource.scope_logs.add()
        for event in events[start : start + BATCH]:
            record = scope.log_records.add(time_unix_nano=1763805600123456789, trace_id=b"t" * 16, span_id=b"s" * 8)
            if not attributes:
                record.body.string_value = orjson.dumps(event).decode()
                continue
            for key, value in event.items():
                record.attributes.append(_pair(key, value))
        made.append(request.SerializeToString())
    return made


def _record(draw: random.Random, sentences: Sentences, number: int) -> Record:
    event: dict[str, Any] = {
        "event_id": f"{draw.getrandbits(128):032x}",
        "event_type": "model_call",
        "timestamp": f"2026-11-22T10:{number // 60 % 60:02d}:{number % 60:02d}.{draw.randrange(10**6):06d}Z",
        "model_id": f"assistant-{draw.randrange(9)}",
        "status": "success",
        "compliance_score": round(draw.random(), 4),
        "constitutional_hash": "cdd01ef066bc6cf2",
        "latency_ms": round(draw.expovariate(1 / 400), 3),
        "prompt_tokens": draw.randrange(9_000),
        "prompt": sentences.text(1),
        "response": "",
    }
    planted = 0
    if draw.random() < DIRTY_SHARE:
        planted = 2 if draw.random() < TWO_FINDINGS else 1
        event["prompt"] += " " + " and ".join(_personal(draw) for _ in range(planted))
    room = SIZE - len(orjson.dumps(event))
    while len(event["response"]) < room:
        event["response"] += sentences.text(1) + " "
    event["response"] = event["response"][: max(0, room)]
    return Record(event, planted)


def _personal(draw: random.Random) -> str:
    number = draw.randrange(100, 999)
    return draw.choice(
        (
            f"write to ada.lovelace{number}@example.com",
            f"call +1 (415) 555-2{number}",
            "card 4111 1111 1111 1111",
            f"from 192.168.{number % 250}.17",
            f"SSN 123-45-6{number}",
            "IBAN GB82WEST12345698765432",
            f"from 2001:db8::{number}:7334",
            f"password=hunter{number}",
        )
    )


def _pair(key: str, value: Any) -> Any:
    request = ExportLogsServiceRequest()
    pair = request.resource_logs.add().resource.attributes.add(key=key)
    if isinstance(value, str):
        pair.value.string_value = value
    elif isinstance(value, float):
        pair.value.double_value = value
    else:
        pair.value.int_value = value
    return pair
