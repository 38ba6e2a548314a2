"""Workers on the chunk transport (`chunk_worker.py`), and the broker's side of their group: for its tests."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import chunk_worker
from chunk_worker import Options, put
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from systems import wait_until

Place = tuple[str, int]
"""Topic and partition."""
Spot = tuple[str, int, int]
"""Topic, partition and offset."""


@dataclass
class Member:
    """A worker process of a consumer group."""

    folder: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    _asked: int = 0

    def entries(self, step: str) -> list[list[Any]]:
        """What the journal says of a step, in order."""
        try:
            lines = (self.folder / "journal").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        # Killed, or still at it: the last line may be half written.
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [entry[1:] for entry in found if entry[0] == step]

    def got(self) -> list[Spot]:
        """All that was handed to the handler, in order."""
        return [tuple(entry[:3]) for entry in self.entries("got")]

    def done(self) -> list[Spot]:
        """All that was finished, in order."""
        return [tuple(entry) for entry in self.entries("done")]

    def hold(self, *spot: str | int) -> None:
        """Let no batch finish that holds this spot or a later one of its partition; without a spot, none at all."""
        hold, new = self.folder / "hold", self.folder / "hold.new"
        new.write_text(json.dumps(spot) if spot else "")
        new.replace(hold)

    def release(self) -> None:
        """Let batches finish."""
        (self.folder / "hold").unlink()

    def ask(self, name: str, *arguments: str | int) -> Any:
        """Have the worker do something; returns what it answered."""
        self._asked += 1
        request = self.folder / f"{self._asked}.request"
        put(request, [name, arguments])
        answer = request.with_suffix(".answer")
        self.wait(answer.exists, f"the worker answers {name}")
        return json.loads(answer.read_text())

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something, as long as the worker runs."""

        def holds() -> bool:
            assert self.process.poll() is None, f"{self.folder.name} ended: {self.process.returncode}"
            return bool(condition())

        wait_until(holds, what, 60.0)

    def stop(self) -> None:
        """Stop it as an orchestrator does, and see that it ends well."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30.0) == 0

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def grows(self, by: int) -> Callable[[], bool]:
        """A condition: so many more records are finished than are now."""
        goal = len(self.done()) + by
        return lambda: len(self.done()) >= goal

    def said(self) -> str:
        """Its log."""
        return (self.folder / "log").read_text(errors="replace")


# --- the broker's side -------------------------------------------------------------------------------------------


@dataclass
class Rig:
    """A group, its topics and its workers on a broker that other tests may share."""

    broker: str
    declares_topics: bool
    folder: Path
    group: str
    members: list[Member] = field(default_factory=list)
    topics: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._common = {"bootstrap.servers": self.broker, "log_level": 0}
        self.admin = AdminClient(self._common)
        self._looker = Consumer({**self._common, "group.id": self.group})  # never joins: it only asks

    def make_topic(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> str:
        """Create a topic of the group's."""
        if self.declares_topics:
            topic = NewTopic(name, partitions, 1, config=dict(config or {}))
            self.admin.create_topics([topic])[name].result(30)
        # The mock cluster makes what its metadata is asked for.
        wait_until(lambda: self._partitions(name) == partitions, f"{name} exists")
        self.topics[name] = partitions
        return name

    def _partitions(self, topic: str) -> int:
        return len(self.admin.list_topics(topic, timeout=30).topics[topic].partitions)

    def producer(self, **config: str) -> Producer:
        """A librdkafka producer that waits for all replicas."""
        return Producer({**self._common, "acks": "all", "linger.ms": 5, **config})

    def send(self, topic: str, partition: int, count: int, keys: Iterable[str] | None = None) -> None:
        """Append records whose value is their number, with these keys."""
        producer = self.producer()
        for number, key in zip(range(count), keys or itertools.repeat(None), strict=False):
            producer.produce(topic, b"%d" % number, key, partition)
        assert producer.flush(30) == 0

    def wait_sent(self, count: int) -> None:
        """Wait until so many more records have come."""
        goal = sum(self.ends().values()) + count
        wait_until(lambda: sum(self.ends().values()) >= goal, f"{count} records come", 60.0)

    def set_committed(self, topic: str, partition: int, offset: int) -> None:
        """Commit for the group, which has no members yet."""
        self._looker.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)

    def cut_head(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset, as retention does."""
        place = TopicPartition(topic, partition, before)
        self.admin.delete_records([place])[place].result(30)

    def set_broker(self, name: str, value: str) -> None:
        """Change a setting of the running broker."""
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
        self.admin.incremental_alter_configs([resource])[resource].result(30)

    def start(self, name: str, options: Options | None = None, held: bool = False, **environment: str) -> Member:
        """Start a worker; `held` keeps it from finishing anything."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        config = [self.broker, self.group, list(self.topics), str(folder), asdict(options or Options())]
        log = (folder / "log").open("ab")
        command = [sys.executable, chunk_worker.__file__, json.dumps(config)]
        if held:
            (folder / "hold").touch()
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
        )
        member = Member(folder, process, log)
        self.members.append(member)
        return member

    def places(self) -> list[Place]:
        """All partitions of the group's topics."""
        return [(topic, number) for topic, partitions in self.topics.items() for number in range(partitions)]

    def committed(self) -> dict[Place, int]:
        """What the group has committed of each partition; 0 where nothing."""
        found = self._looker.committed([TopicPartition(*place) for place in self.places()], 30)
        return {(place.topic, place.partition): max(place.offset, 0) for place in found}

    def ends(self) -> dict[Place, int]:
        """The end of each partition."""
        return {place: end for place, (_, end) in self.watermarks().items()}

    def watermarks(self) -> dict[Place, tuple[int, int]]:
        """Where each partition begins and ends."""
        return {place: self._looker.get_watermark_offsets(TopicPartition(*place), 30) for place in self.places()}

    def offsets(self, topic: str) -> dict[int, list[int]]:
        """The offsets that a plain consumer sees in each partition of a topic, uncommitted ones left out."""
        marks = {place: mark for place, mark in self.watermarks().items() if place[0] == topic}
        found: dict[int, list[int]] = {partition: [] for _, partition in marks}
        reader = Consumer({**self._common, "group.id": "offsets", "enable.partition.eof": True})
        reader.assign([TopicPartition(*place, begin) for place, (begin, _) in marks.items()])
        open_ = set(found)
        while open_:
            message = reader.poll(30)
            assert message is not None, f"{topic}: no end of {open_}"
            if message.error() is not None:
                open_.discard(message.partition())
            else:
                found[message.partition()].append(message.offset())
        reader.close()
        return found

    def spots(self) -> set[Spot]:
        """Every record that can be read."""
        by_topic = {topic: self.offsets(topic) for topic in self.topics}
        return {(topic, p, offset) for topic, found in by_topic.items() for p, some in found.items() for offset in some}

    def wait_committed(self, what: str = "everything is committed") -> None:
        """Wait until the group has committed up to the end of every partition."""

        def all_committed() -> bool:
            try:
                return self.committed() == self.ends()
            except KafkaException:  # the broker is only just back
                return False

        wait_until(all_committed, what, 60.0)

    def close(self) -> None:
        """End all workers, and print what they said."""
        self._looker.close()
        for member in self.members:
            member.kill()
            print(f"--- {member.folder.name}", member.said()[-6000:], sep="\n")


# --- what they tell together -------------------------------------------------------------------------------------


def reached(spots: list[Spot]) -> dict[Place, int]:
    """One past the last offset of each partition."""
    found: dict[Place, int] = defaultdict(int)
    for topic, partition, offset in spots:
        found[topic, partition] = max(found[topic, partition], offset + 1)
    return found


def finished(*members: Member) -> set[Spot]:
    """What any of them has finished."""
    return {spot for member in members for spot in member.done()}


def repeated(*members: Member) -> set[Spot]:
    """What was finished more than once."""
    counts = Counter(spot for member in members for spot in member.done())
    return {spot for spot, count in counts.items() if count > 1}


@contextmanager
def trickle(rig: Rig, topic: str) -> Iterator[None]:
    """Meanwhile records keep coming, a few a fetch, on all partitions."""
    over = threading.Event()
    producer = rig.producer()

    def run() -> None:
        while not over.wait(0.02):
            for number in range(rig.topics[topic]):
                producer.produce(topic, b"trickle", partition=number)
            producer.poll(0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        assert producer.flush(30) == 0
