"""What the router adds to an event, and the key and topic it goes out under."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import orjson

from agents.routing import sample
from agents.routing.classify import RoutingRules
from agents.routing.identity import EventIdentity
from agents.routing.message import DecodedRecord
from agents.routing.publish import OutRecord
from agents.routing.trace import TRACEPARENT
from app.topics import ROUTES
from models.event import Classification

_ROUTES = MappingProxyType({kind: (topic.name, priority.value) for kind, (topic, priority) in ROUTES.items()})
_MICROS = 1_000_000


class Stamp(NamedTuple):
    """What every record of a batch is stamped with."""

    processed_at: str
    constitutional_hash: str
    acgs_version: str
    sample_rates: Mapping[Classification, float]

    @classmethod
    def of(cls, rules: RoutingRules, seconds: float) -> Stamp:
        """The stamp of a batch that is routed at `seconds` since the Unix epoch."""
        return cls(processing_timestamp(seconds), rules.constitutional_hash, rules.acgs_version, rules.sample_rates)


def processing_timestamp(seconds: float) -> str:
    """Format seconds since the Unix epoch as RFC 3339 in UTC with microseconds."""
    micros = round(seconds * _MICROS)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(micros // _MICROS))
    return f"{whole}.{micros % _MICROS:06d}Z"


def output_key(record: DecodedRecord, identity: EventIdentity) -> bytes:
    """Return the key a record goes out under: a single event's input key, else its trace id, else its identity."""
    if record.single and record.message.key:
        return record.message.key
    return (sample.trace_id(record.event) or identity.id).encode()


def enrich(
    record: DecodedRecord,
    classification: Classification,
    identity: EventIdentity,
    stamp: Stamp,
    traceparent: bytes | None = None,
) -> OutRecord:
    """Stamp the record's event, in place, and return it as it is published (see `models.event.RoutedEvent`).

    The system's `constitutional_hash` replaces the producer's; `traceparent` goes out as the header of that name.
    """
    topic, priority = _ROUTES[classification]
    event = record.event
    event["event_classification"] = classification.value
    event["processing_timestamp"] = stamp.processed_at
    event["constitutional_hash"] = stamp.constitutional_hash
    event["acgs_version"] = stamp.acgs_version
    event["routing_metadata"] = {
        "topic": topic,
        "priority": priority,
        "sample_rate": stamp.sample_rates.get(classification, 1.0),
        "identity": {"service": identity.service, "id": identity.id, "fingerprint": identity.fingerprint},
    }
    headers = () if traceparent is None else ((TRACEPARENT, traceparent),)
    return OutRecord(topic, output_key(record, identity), orjson.dumps(event), headers)
