"""Events that come through the collector, each sent again until the collector has acknowledged it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
import orjson
from collector_parts import log, logs
from confluent_kafka import Message
from fault_traffic import HASH, TOPICS
from systems import wait_until

from app.embedded.collector import CollectorServer

PREFIX = "collected-"
MODEL = "collected"
_VIOLATIONS = TOPICS["constitutional_violation"]


class Collected:
    """Sends violations through a collector, some a second, from a thread of its own, until `finish`."""

    BATCH, PAUSE_S = 5, 0.5

    def __init__(self, server: CollectorServer) -> None:
        self.acknowledged = 0
        self._url = server.endpoint("logs")
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait_progress(self) -> None:
        """Wait until more is acknowledged."""
        before = self.acknowledged
        wait_until(lambda: self.acknowledged > before or self._failure, "the collector takes events")
        assert self._failure is None, f"the sender broke: {self._failure!r}"

    def finish(self) -> set[str]:
        """Send no more; the ids of all that were sent, each of which was acknowledged."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the collector does not take the last events"
        assert self._failure is None, f"the sender broke: {self._failure!r}"
        return {f"{PREFIX}{number}" for number in range(self.acknowledged)}

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.PAUSE_S):
                numbers = range(self.acknowledged, self.acknowledged + self.BATCH)
                request = logs([log(orjson.dumps(_event(number)).decode()) for number in numbers])
                while not self._taken(request):
                    self._stop.wait(self.PAUSE_S)
                self.acknowledged += self.BATCH
        except BaseException as error:
            self._failure = error
            raise

    def _taken(self, request: Any) -> bool:
        try:
            answer = httpx.post(self._url, json=request, timeout=10.0, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK and not answer.json().get("partialSuccess")


def _event(number: int) -> dict[str, Any]:
    return {
        "event_id": f"{PREFIX}{number}",
        "constitutional_hash": HASH,
        "violations": ["harm"],
        "compliance_score": 0.2,
        "model_id": MODEL,
        "prompt": f"question {number}",
        "response": f"answer {number}",
    }


def is_collected(event: Any) -> bool:
    """Whether a routed event came through the collector."""
    return str(event["event_id"]).startswith(PREFIX)


def check(sent: set[str], outputs: dict[str, list[Message]], excuses: int) -> int:
    """All that was sent lies on its topic, more than once only so often as faults excuse; how many do."""
    found: Counter[str] = Counter()
    for topic, messages in outputs.items():
        for event in _events(messages):
            assert topic == _VIOLATIONS, f"{event['event_id']} is on {topic}"
            found[event["event_id"]] += 1
    assert not sent - found.keys(), f"{len(sent - found.keys())} of {len(sent)} acknowledged by the collector are lost"
    assert not found.keys() - sent, "events came through the collector that nobody sent"
    again = {event_id: times for event_id, times in found.items() if times > 1}
    worst = max(again.values(), default=1)
    assert worst <= 1 + excuses, f"an event of the collector came {worst} times; {excuses} faults excuse it"
    return len(again)


def _events(messages: Iterable[Message]) -> Iterable[dict[str, Any]]:
    return (event for event in (orjson.loads(message.value()) for message in messages) if is_collected(event))
