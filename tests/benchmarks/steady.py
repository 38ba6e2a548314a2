"""A producer in a process of its own: a steady stream of the reference mix, each event stamped when it is produced.

The stamp goes into `observed_timestamp`, which no fingerprint holds: a duplicate told later is still a duplicate.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from confluent_kafka import Producer

from app.topics import AUDIT_EVENTS
from benchmarks.messages import Form, encode
from benchmarks.mix import Event, events
from benchmarks.stage import client_settings

STAMP = "observed_timestamp"
RECORDS_PER_MESSAGE = 50
LINGER_MS = 5
_FLUSH_WITHIN_S = 30.0
_TICK_S = 0.001


def main() -> None:
    """Produce, then print as JSON how fast it went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--form", type=Form, required=True)
    parser.add_argument("--rate", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    asked = parser.parse_args()
    # Messages without a key go to any partition, not to one for a while.
    chosen = {"linger.ms": LINGER_MS, "sticky.partitioning.linger.ms": 0, "acks": "all"}
    producer = Producer(client_settings(asked.bootstrap) | chosen)
    prepared = list(events(asked.count))  # so that making them delays nobody
    gc.freeze()
    began = time.perf_counter()
    late = produce(producer, asked.form, prepared, asked.rate)
    took = time.perf_counter() - began
    left = producer.flush(_FLUSH_WITHIN_S)
    json.dump({"events_per_s": asked.count / took, "most_late_ms": late * 1000, "unacknowledged": left}, sys.stdout)


def produce(producer: Producer, form: Form, prepared: Iterable[Event], rate: int) -> float:
    """Produce at `rate` events a second; return by how many seconds the schedule was missed at worst."""
    size = 1 if form is Form.SINGLE else RECORDS_PER_MESSAGE
    began = time.perf_counter()
    late = 0.0
    for number, batch in enumerate(_batches(prepared, size)):
        due = began + number * size / rate
        while (early := due - time.perf_counter()) > 0:
            producer.poll(0)
            time.sleep(min(early, _TICK_S))
        late = max(late, -early)
        now = time.time_ns()
        for event in batch:
            event[STAMP] = now
        for message in encode(batch, form, size):
            producer.produce(AUDIT_EVENTS.name, message.value, message.key)
        producer.poll(0)
    return late


def _batches(prepared: Iterable[Event], size: int) -> Iterator[list[Event]]:
    iterator = iter(prepared)
    while batch := list(islice(iterator, size)):
        yield batch


if __name__ == "__main__":
    main()
