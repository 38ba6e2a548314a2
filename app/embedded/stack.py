"""The services that production reaches by URL, as child processes: a broker and Redis; SQL is a file and needs none."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Literal

from app.embedded.kafka import KafkaBroker
from app.embedded.mock_broker import MockBroker
from app.embedded.process import AnyService, ProcessGroup
from app.embedded.redis import RedisServer
from app.embedded.run_directory import RunDirectory

BrokerKind = Literal["mock", "real"]


class Stack:
    """Broker and Redis of one run, and whatever else is started with them; all end when the block ends.

    Args:
        run: the run they belong to; the caller closes it.
        broker: `mock` for librdkafka's mock cluster, `real` for Apache Kafka.
        cache: where Apache Kafka's jars are kept.
    """

    def __init__(self, run: RunDirectory, *, broker: BrokerKind, cache: Path) -> None:
        self.run = run
        self.broker: MockBroker | KafkaBroker = MockBroker(run) if broker == "mock" else KafkaBroker(run, cache)
        self.redis = RedisServer(run)
        self.group = ProcessGroup()

    def start(self) -> None:
        """Start broker and Redis; neither is left running when the other fails.

        Raises:
            EmbeddedError: one of them cannot be provided.
        """
        try:
            self.group.start(self.broker)
            self.group.start(self.redis)
        except BaseException:
            self.group.stop()
            raise

    def add(self, service: AnyService) -> AnyService:
        """Start one more process; it is stopped before those started earlier."""
        return self.group.start(service)

    def check(self) -> None:
        """Raise `ProcessExited` when any of them has ended by itself."""
        self.group.check()

    def stop(self) -> None:
        """Stop everything, latest first."""
        self.group.stop()

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
