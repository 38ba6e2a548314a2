"""Traffic for the fault tests: tellings of events in their messages, what must become of them, and what did.

A telling is one record that tells of an event. One in ten repeats an event told before. Its `timestamp`, which a
repetition may change, holds the telling's number, so every routed event says which telling it came from: two copies of
one telling are a redelivery, two tellings of one event are a failure to see a duplicate.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import orjson
from confluent_kafka import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from agents.routing import sample
from agents.routing.identity import id_digest

Event = dict[str, Any]
Place = tuple[int, int]
"""Partition and offset of a message on the input topic."""

HASH, SERVICE, KEYS, RECORDS = "cdd01ef066bc6cf2", "assistant", 64, 100
SAMPLE_RATE, REPEATED = 0.2, 0.1
NUMBER_HEADER = "message-number"
BROKEN, ROUTINE, EVALUATION = "broken", "routine", "policy_evaluation"
KINDS = {
    "constitutional_violation": 10,
    EVALUATION: 20,
    "model_optimization_trigger": 10,
    "human_feedback": 10,
    "audit_trail": 20,
    ROUTINE: 29.5,
    BROKEN: 0.5,
}
TOPICS = {
    "constitutional_violation": "constitutional-violations",
    EVALUATION: "policy-evaluations",
    "model_optimization_trigger": "model-optimization-triggers",
    "human_feedback": "human-feedback-loops",
    "audit_trail": "audit-trail-events",
}
DEAD_LETTERS = "audit-dead-letters"
_SHAPES: dict[str, Event] = {
    "constitutional_violation": {"constitutional_hash": HASH, "violations": ["harm"], "compliance_score": 0.2},
    EVALUATION: {"event_type": "policy_evaluation", "compliance_score": 0.97},
    "model_optimization_trigger": {"compliance_score": 0.5},
    "human_feedback": {"source": "human_review", "verdict": "reject", "compliance_score": 0.9},
    "audit_trail": {"status": "failure", "compliance_score": 0.9},
    ROUTINE: {"status": "success", "compliance_score": 0.99},
    BROKEN: {"compliance_score": "high"},
}
_TEXT = "Please explain how the committee reached its verdict, and what a citizen may do about it. " * 3


class Told(NamedTuple):
    """One message: its number in the stream, and the tellings in it."""

    number: int
    key: bytes | None
    value: bytes
    tellings: range


@dataclass(frozen=True)
class Traffic:
    """A stream of `tellings` records, the same for the same seed. Half of them go out alone, with a key."""

    tellings: int
    seed: int

    @cached_property
    def numbers(self) -> list[int]:
        """The event that each telling tells."""
        drawn = random.Random(self.seed)
        numbers: list[int] = []
        distinct = 0
        for _ in range(self.tellings):
            repeated = drawn.randrange(distinct) if distinct and drawn.random() < REPEATED else distinct
            if self.kinds[repeated] == BROKEN:  # a second telling of it would be a second dead letter, rightly
                repeated = distinct
            distinct += repeated == distinct
            numbers.append(repeated)
        return numbers

    @cached_property
    def kinds(self) -> list[str]:
        """What each event is."""
        return random.Random(self.seed + 1).choices(list(KINDS), list(KINDS.values()), k=self.tellings + 1)

    @cached_property
    def messages(self) -> list[Told]:
        """All messages, in the order they are sent: an OTLP message of 100 records, then 100 single events, and on."""
        return list(self._messages())

    @cached_property
    def expected(self) -> dict[str, str]:
        """Event id to the topic it must reach, for all that must be routed."""
        routed = filter(self._is_routed, set(self.numbers))
        return {f"event-{number}": TOPICS[self.kinds[number]] for number in routed}

    @cached_property
    def broken(self) -> set[int]:
        """The tellings that must become dead letters."""
        return {telling for telling, number in enumerate(self.numbers) if self.kinds[number] == BROKEN}

    def event(self, telling: int) -> Event:
        """The event as this telling tells it."""
        number = self.numbers[telling]
        return {
            "event_id": f"event-{number}",
            "timestamp": timestamp(telling),
            "service.name": SERVICE,
            "model_id": f"model-{number % 7}",
            "conversation": f"conversation-{number % KEYS}",
            "prompt": f"{number}: {_TEXT}",
            **_SHAPES[self.kinds[number]],
        }

    def _is_routed(self, number: int) -> bool:
        kind = self.kinds[number]
        if kind == EVALUATION:
            randomness = sample.digest_randomness(id_digest(SERVICE, f"event-{number}"))
            return sample.keep(randomness, SAMPLE_RATE)
        return kind in TOPICS

    def _messages(self) -> Iterator[Told]:
        number, at = 0, 0
        while at < self.tellings:
            group = range(at, min(at + RECORDS, self.tellings))
            yield Told(number, None, otlp([self.event(telling) for telling in group]), group)
            number, at = number + 1, group.stop
            for telling in range(at, min(at + RECORDS, self.tellings)):
                event = self.event(telling)
                key = event["conversation"].encode()
                yield Told(number, key, orjson.dumps(event), range(telling, telling + 1))
                number, at = number + 1, telling + 1


def timestamp(telling: int) -> str:
    """A telling's number as the microseconds of a time."""
    return f"2026-01-01T00:00:{telling // 1_000_000:02d}.{telling % 1_000_000:06d}Z"


def telling_of(event: Event) -> int:
    """The telling that a routed event came from."""
    seconds, micros = event["timestamp"][17:26].split(".")
    return int(seconds) * 1_000_000 + int(micros)


def otlp(events: Iterable[Event]) -> bytes:
    """Events as an OTLP protobuf message, each the text of a log record's body."""
    records = [LogRecord(body=AnyValue(string_value=orjson.dumps(event).decode())) for event in events]
    name = KeyValue(key="service.name", value=AnyValue(string_value=SERVICE))
    scope = ScopeLogs(log_records=records)
    logs = LogsData(resource_logs=[ResourceLogs(resource=Resource(attributes=[name]), scope_logs=[scope])])
    return bytes(logs.SerializeToString())


@dataclass
class Outcome:
    """What came out more than once; whatever else was wrong has failed the test already."""

    records: int
    """Routed records at the output, copies included."""
    redelivered: dict[int, list[float]]
    """Tellings routed more than once, and when each copy was (Unix seconds, sorted; all of a batch share one)."""
    dead_again: list[int]
    """Tellings of which there is more than one dead letter."""
    doubles: dict[str, list[int]]
    """Events of which more than one telling was routed, and those tellings."""


class Judge:
    """Compares what lies on the topics with what the traffic asks for.

    Args:
        traffic: what was sent.
        sent: the input topic's messages as they lie there.
    """

    def __init__(self, traffic: Traffic, sent: Iterable[Message]) -> None:
        self.traffic = traffic
        self.places: dict[int, Place] = {}
        for message in sent:
            number = int(dict(message.headers())[NUMBER_HEADER])
            assert number not in self.places, f"the test sent message {number} twice"
            self.places[number] = (message.partition(), message.offset())
        assert len(self.places) == len(traffic.messages), "the test did not send all messages"
        self._message_of = {telling: told.number for told in traffic.messages for telling in told.tellings}

    def place(self, telling: int) -> Place:
        """Where the message of a telling lies."""
        return self.places[self._message_of[telling]]

    def outcome(self, outputs: Mapping[str, list[Message]]) -> Outcome:
        """Judge the output topics; fails the test on anything lost, invented, changed, misplaced or out of order."""
        traffic = self.traffic
        copies: dict[int, list[float]] = defaultdict(list)
        tellings: dict[str, list[int]] = defaultdict(list)
        last: dict[tuple[str, bytes], tuple[int, int]] = {}
        for topic in TOPICS.values():
            for message in outputs[topic]:
                event = orjson.loads(message.value())
                telling = telling_of(event)
                event_id = event["event_id"]
                assert traffic.expected.get(event_id) == topic, f"{event_id} is on {topic}"
                sent = traffic.event(telling) | {"constitutional_hash": HASH}
                assert {name: event.get(name) for name in sent} == sent, f"{event_id} was changed on its way"
                copies[telling].append(datetime.fromisoformat(event["processing_timestamp"]).timestamp())
                if len(copies[telling]) == 1:
                    self._check_order(topic, message, telling, last)
                    tellings[event_id].append(telling)
        lost = traffic.expected.keys() - tellings.keys()
        assert not lost, f"{len(lost)} of {len(traffic.expected)} events are lost, such as {self._describe(lost)}"
        letters = self._dead_letters(outputs[DEAD_LETTERS])
        return Outcome(
            records=sum(len(outputs[topic]) for topic in TOPICS.values()),
            redelivered={telling: sorted(times) for telling, times in copies.items() if len(times) > 1},
            dead_again=[telling for telling, count in letters.items() if count > 1],
            doubles={event_id: found for event_id, found in tellings.items() if len(found) > 1},
        )

    def _check_order(
        self, topic: str, message: Message, telling: int, last: dict[tuple[str, bytes], tuple[int, int]]
    ) -> None:
        """A single event's key keeps its partition, and its tellings their order, copies left aside."""
        key = self.traffic.messages[self._message_of[telling]].key
        if key is None:
            return
        assert message.key() == key, f"telling {telling} went out under {message.key()!r} in place of {key!r}"
        before, partition = last.get((topic, key), (-1, message.partition()))
        assert message.partition() == partition, f"{key!r} is on two partitions of {topic}"
        assert before < telling, f"{key!r} on {topic}: telling {telling} came after {before}"
        last[topic, key] = (telling, partition)

    def _dead_letters(self, letters: Iterable[Message]) -> Counter[int]:
        """How often each telling became a dead letter: each broken one did, under its own place, and nothing else."""
        broken = {self._owner(telling): telling for telling in self.traffic.broken}
        found: Counter[int] = Counter()
        for letter in letters:
            headers = dict(letter.headers())
            owner, reason = headers["flywheel-owner"].decode(), headers["flywheel-reason"]
            assert owner in broken, f"{owner} became a dead letter: {reason!r}"
            assert reason == b"invalid_score", f"{owner}: {reason!r}"
            found[broken[owner]] += 1
        lost = self.traffic.broken - found.keys()
        assert not lost, f"{len(lost)} of {len(broken)} dead letters are lost, such as telling {min(lost)}"
        return found

    def _owner(self, telling: int) -> str:
        partition, offset = self.place(telling)
        index = telling - self.traffic.messages[self._message_of[telling]].tellings.start
        return f"otel-audit-events:{partition}:{offset}:{index}"

    def _describe(self, lost: Collection[str]) -> str:
        found = [(event_id, self._places_of(event_id)) for event_id in sorted(lost)[:5]]
        return "; ".join(f"{event_id} told at {places}" for event_id, places in found)

    def _places_of(self, event_id: str) -> list[Place]:
        number = int(event_id.removeprefix("event-"))
        return [self.place(telling) for telling, told in enumerate(self.traffic.numbers) if told == number]
