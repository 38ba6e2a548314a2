"""Messages of every form for property tests, each with what must be read out of it, and places on the input topic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from routing_model import Event, Sent, Told
from routing_parts import HASH

from agents.routing.message import InboundMessage

ABSENT = object()

# --- events -----------------------------------------------------------------------------------------------------

DECIDING = {
    "constitutional_hash": [ABSENT, HASH, "another", None],
    "violations": [ABSENT, ["v"], [], [{"type": "v", "severity": "high"}], None],
    "event_type": [ABSENT, "policy_evaluation", "policy_evaluation", "model_call"],
    "compliance_score": [ABSENT, 0.1, 0.7999, 0.8, 0.95, 0.96, 1, 0, None],
    "source": [ABSENT, "human_review", "app", None],
    "status": [ABSENT, "success", "failure"],
}
WRONG = [
    {"event_id": 5},
    {"source": []},
    {"status": True},
    {"constitutional_hash": {}},
    {"event_type": 1.5},
    *({"compliance_score": score} for score in ("0.5", True, 1.01, -1, [0.5])),
    *({"violations": violations} for violations in ("v", 3, [1], [None], [{}], [{"type": 2}])),
]
HALF, KEPT = "0" * 18 + "7fffffffffffff", "0" * 18 + "80000000000000"
TRACES = [ABSENT, KEPT, HALF, "f" * 32, "0" * 32, "no trace", 7]
IDS = {"a": ABSENT, "b": KEPT, "c": HALF, "d": "no trace"}
"""Names of events, each with its trace: tellings of one event share it."""


def event_of(fields: dict[str, Any], name: str | None, trace: Any, note: int, wrong: Event) -> Event:
    named = {"event_id": name, "trace_id": IDS.get(name, trace) if name else trace, "note": note}
    return {key: value for key, value in (fields | named).items() if value is not ABSENT} | wrong


EVENT = st.builds(
    event_of,
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in DECIDING.items()}),
    st.sampled_from([*IDS, *IDS, None, ""]),
    st.sampled_from(TRACES),
    st.integers(0, 1),
    st.sampled_from([{}] * 20 + WRONG),
)
RETOLD = st.sampled_from(
    [{}, {}, {"timestamp": "2026-01-01T00:00:00Z"}, {"timestamp": 5}, {"parent_span_id": "cd" * 8}]
)
"""What differs between two tellings of an event."""

SERVICE = st.sampled_from(["assistant", "search"])

# --- messages: how events are sent, and what they must be read as -----------------------------------------------

Form = Callable[[list[Event], str], tuple[bytes, list[Told]]]


def single(events: list[Event], service: str) -> tuple[bytes, list[Told]]:
    event = events[0] | {"service.name": service}
    return orjson.dumps(event), [Told(event, service, single=True)]


def array(events: list[Event], service: str) -> tuple[bytes, list[Told]]:
    told = [event | {"resource": {"service.name": service, "pod": "p"}} for event in events]
    return orjson.dumps([*told, 5]), [*(Told(event, service) for event in told), Told(None, reason="not_an_object")]


def lines(events: list[Event], service: str) -> tuple[bytes, list[Told]]:
    value = b"\n".join([*map(orjson.dumps, events), b"{broken"])
    return value, [*(Told(event) for event in events), Told(None, reason="invalid_json")]


def otlp_json(events: list[Event], service: str) -> tuple[bytes, list[Told]]:
    records = [{"body": {"stringValue": orjson.dumps(event).decode()}, "spanId": "ab" * 8} for event in events]
    attributes = [{"key": "service.name", "value": {"stringValue": service}}]
    scopes = [{"logRecords": [record]} for record in records]
    request = {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": scopes}]}
    extra = {"resource": {"service.name": service}, "span_id": "ab" * 8}
    return orjson.dumps(request), [Told(event | extra, service) for event in events]


def otlp_protobuf(events: list[Event], service: str) -> tuple[bytes, list[Told]]:
    resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value=service))])
    records = [LogRecord(body=AnyValue(string_value=orjson.dumps(event).decode())) for event in events]
    logs = LogsData(resource_logs=[ResourceLogs(resource=resource, scope_logs=[ScopeLogs(log_records=records)])])
    extra = {"resource": {"service.name": service}}
    return logs.SerializeToString(), [Told(event | extra, service) for event in events]


def unreadable(events: list[Event], service: str) -> tuple[bytes, list[Told]]:
    return b"{", [Told(None, reason="invalid_json")]


FORMS: list[Form] = [single, single, array, lines, otlp_json, otlp_protobuf, otlp_protobuf, unreadable]
SPOILING = [b"in\nx:0:0:0", b"in:0:0:0\n", b"in:0:0\n:0", b"x" * 300 + b":0:0:0", b"in:0:" + b"9" * 400 + b":0"]
"""Would end a claim early in Redis, or fill it."""

NO_OWNER = [b"", b"in", b"in:0:0", b"in:0:0:-1", b"in:0:0:0 ", b"in:0:x:0", b"\xff\xfe", b":0:0:0"]
"""Headers that name no place, so that a message owns its claims itself."""


@dataclass(frozen=True)
class Draw:
    """A message before it has its place."""

    form: Form
    events: list[Event]
    service: str
    key: bytes | None
    owner: bytes | None
    replay: int | None


@st.composite
def draws(draw: st.DrawFn) -> list[Draw]:
    """Twelve messages over few events, so that most events are told more than once."""
    pool = draw(st.lists(EVENT, min_size=1, max_size=6))
    telling = st.builds(lambda event, retold: event | retold, st.sampled_from(pool), RETOLD)
    one = st.builds(
        Draw,
        st.sampled_from(FORMS),
        st.lists(telling, min_size=1, max_size=4),
        SERVICE,
        st.sampled_from([None, None, b"k"]),
        st.sampled_from([None] * 10 + NO_OWNER),
        st.none() | st.none() | st.integers(0, 30),
    )
    return draw(st.lists(one, min_size=12, max_size=12))


def place(drawn: list[Draw]) -> list[Sent]:
    """Give each message its place; some tell an earlier one again, as the replay of a dead letter does."""
    sent: list[Sent] = []
    for offset, draw in enumerate(drawn):
        at = (offset % 3, offset)
        if draw.replay is not None and sent:
            first = sent[draw.replay % len(sent)]
            origin = first.replay_of or (first.partition, first.offset)
            header = f"in:{origin[0]}:{origin[1]}:0".encode()
            sent.append(Sent(*at, first.value, first.told, first.key, (("flywheel-owner", header),), origin))
            continue
        value, told = draw.form(draw.events, draw.service)
        headers = () if draw.owner is None else (("flywheel-owner", draw.owner),)
        sent.append(Sent(*at, value, tuple(told), draw.key, headers))
    return sent


def inbound(sent: Sent) -> InboundMessage:
    return InboundMessage("in", sent.partition, sent.offset, sent.value, sent.key, dict(sent.headers))
