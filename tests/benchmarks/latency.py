"""How long a record takes from being produced to being readable in its topic, under a steady stream.

Three processes: the producer (`steady.py`), the router, and this one, which reads the routed topics.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from app.embedded.process import ManagedProcess, Program
from app.topics import AUDIT_EVENTS
from benchmarks.expected import OUTPUTS, Expected
from benchmarks.messages import Form
from benchmarks.mix import events
from benchmarks.run import OURS, ContenderFailed, Input, start
from benchmarks.stage import REPOSITORY, TESTS, Stage, client_settings
from benchmarks.steady import RECORDS_PER_MESSAGE, STAMP
from benchmarks.tell import tell

RATE = 5_000
WARM_UP_S = 5
STEADY_S = 20
_FORMS = {"single": Form.SINGLE, "otlp": Form.JSON_BODY}
_WITHIN_S = 60.0
_WAIT_S = 0.1
_KEPT_UP = 0.98
_PROBE = "probe"


class StreamIncomplete(RuntimeError):
    """What the stream must give did not all arrive."""


def measure(stage: Stage, form_name: str, rate: int = RATE, steady_s: int = STEADY_S) -> dict[str, Any]:
    """Return p50, p99 and the longest latency, in milliseconds, of what was produced after the warm-up.

    Raises:
        StreamIncomplete: a record did not arrive, or the producer could not keep up.
    """
    form = _FORMS[form_name]
    count = rate * (WARM_UP_S + steady_s)
    stage.clear()
    expected = Expected(form)
    stage.fill(AUDIT_EVENTS.name, ())
    for event in events(count):
        expected.add(event)
    given = Input(form, AUDIT_EVENTS.name, 0, expected)
    consumer = _reader(stage)
    router = start(stage, OURS, given)
    try:
        _probe(stage, consumer, router.process)
        arrivals, most_late_ms = _follow(stage, given, consumer, rate, count)
    finally:
        router.process.stop()
        consumer.close()
    first = min(produced for produced, _ in arrivals)
    taken = sorted(
        (arrived - produced) / 1e6 for produced, arrived in arrivals if produced >= first + WARM_UP_S * 10**9
    )
    result: dict[str, Any] = {
        "p50": _percentile(taken, 0.5),
        "p99": _percentile(taken, 0.99),
        "max": round(taken[-1], 1),
    }
    result |= {"events_per_s": rate, "seconds": steady_s, "records": len(taken)}
    result["producer_most_late_ms"] = round(most_late_ms, 1)
    result["records_per_message"] = 1 if form is Form.SINGLE else RECORDS_PER_MESSAGE
    tell(f"latency, {form.value}: p50 {result['p50']} ms, p99 {result['p99']} ms over {len(taken):,} records")
    return result


def _percentile(taken: list[float], share: float) -> float:
    """The smallest value that at least `share` of the sorted values do not exceed."""
    return round(taken[math.ceil(share * len(taken)) - 1], 1)


def _reader(stage: Stage) -> Consumer:
    """A consumer at the ends of the output topics, which are empty."""
    consumer = Consumer(
        {
            **client_settings(stage.bootstrap),
            "group.id": "benchmark-latency",
            "enable.auto.commit": False,
        }
    )
    topics = consumer.list_topics(timeout=_WITHIN_S).topics
    consumer.assign([TopicPartition(topic, number, 0) for topic in OUTPUTS for number in topics[topic].partitions])
    return consumer


def _probe(stage: Stage, consumer: Consumer, router: ManagedProcess) -> None:
    """Return once the router has routed an event that is not of the stream."""
    producer = Producer(client_settings(stage.bootstrap))
    event = {"event_id": _PROBE, "constitutional_hash": _PROBE, "violations": [_PROBE]}
    producer.produce(AUDIT_EVENTS.name, orjson.dumps(event))
    producer.flush(_WITHIN_S)
    deadline = time.monotonic() + _WITHIN_S
    while _next(consumer) is None:
        if not router.running or time.monotonic() > deadline:
            raise ContenderFailed(f"the router routed nothing within {_WITHIN_S:.0f} s. Its log:\n{router.log()}")


def _follow(
    stage: Stage, given: Input, consumer: Consumer, rate: int, count: int
) -> tuple[list[tuple[int, int]], float]:
    """Let the producer run; return when each routed record was produced and arrived, in nanoseconds, and by how many
    milliseconds the producer missed its schedule at worst.
    """
    asked = {"bootstrap": stage.bootstrap, "form": given.form.value, "rate": rate, "count": count}
    arguments = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    program = Program(
        f"steady-{given.form.value}",
        (sys.executable, "-m", "benchmarks.steady", *arguments),
        env={"PYTHONPATH": f"{TESTS}:{REPOSITORY}"},
    )
    producer = ManagedProcess(stage.system.run, program)
    producer.start()
    arrivals: list[tuple[int, int]] = []
    deadline = time.monotonic() + count / rate + _WITHIN_S
    try:
        while len(arrivals) < given.expected.total:
            event = _next(consumer)
            if event is not None:
                arrivals.append((event[STAMP], time.time_ns()))
            elif time.monotonic() > deadline:
                raise StreamIncomplete(
                    f"{len(arrivals)} of {given.expected.total} records arrived. The producer said:\n{producer.log()}"
                )
        while producer.running and time.monotonic() < deadline:
            time.sleep(_WAIT_S)
    finally:
        producer.stop()
    told = json.loads(producer.log())
    if told["events_per_s"] < rate * _KEPT_UP:
        raise StreamIncomplete(
            f"the producer made {told['events_per_s']:.0f} events/s of {rate}: use a quieter machine"
        )
    return arrivals, told["most_late_ms"]


def _next(consumer: Consumer) -> dict[str, Any] | None:
    """The next routed event, or None where none comes in a while."""
    message = consumer.poll(_WAIT_S)
    if message is None:
        return None
    if message.error() is not None:
        raise KafkaException(message.error())
    event: dict[str, Any] = orjson.loads(message.value())
    return event
