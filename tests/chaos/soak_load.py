"""The soak's producer, a process of its own: the benchmarks' mix at a steady rate, made while it is sent."""

from __future__ import annotations

import sys

from benchmarks.messages import Form
from benchmarks.mix import events
from benchmarks.stage import client_settings
from benchmarks.steady import produce
from confluent_kafka import Producer


def main(bootstrap: str, rate: int, seconds: int) -> None:
    """Produce; fails where not all was acknowledged. Prints by how many seconds the schedule was missed at worst."""
    producer = Producer(client_settings(bootstrap) | {"linger.ms": 5, "acks": "all"})
    late = produce(producer, Form.JSON_BODY, events(rate * seconds), rate)
    assert producer.flush(60) == 0, "not all was acknowledged"
    print(f"{late:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
