"""One or three Apache Kafka brokers as one: replicated, and reached by workers through links that can be broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.run_directory import RunDirectory
from chaos.link import Link

SESSION_MS = 6000
"""After so long without a word from a broker, others lead its partitions."""


class Node(KafkaBroker):
    """A broker and controller of a cluster, with a second listener whose advertised address is its link's.

    Args:
        run: the run it belongs to.
        number: its id, from 1.
        heap_mb: Java heap in MiB.
    """

    ready_within_s = 180.0  # three that start at once share the machine

    def __init__(self, run: RunDirectory, number: int, heap_mb: int) -> None:
        super().__init__(run, default_cache(os.environ), heap_mb, name=f"kafka-{number}")
        self.number = number
        self.client, self.linked, self.controller = free_port(), free_port(), free_port()
        self.link = Link(self.linked)
        self._peers: Sequence[Node] = ()

    @property
    def bootstrap(self) -> str:
        """Its address without the link."""
        return f"{LOOPBACK}:{self.client}"

    def join(self, peers: Sequence[Node]) -> None:
        """Be one of these, before the first start."""
        self._peers = peers
        self._cluster_id = peers[0]._cluster_id

    def _configure(self, ports: Any) -> Path:
        path = super()._configure(ports)
        controller = f"CONTROLLER://{LOOPBACK}:{self.controller}"
        voters = ",".join(f"{node.number}@{LOOPBACK}:{node.controller}" for node in self._peers)
        replicas, in_sync = len(self._peers), min(2, len(self._peers))
        more = (
            f"node.id={self.number}",
            f"controller.quorum.voters={voters}",
            f"listeners=PLAINTEXT://{self.bootstrap},LINKED://{LOOPBACK}:{self.linked},{controller}",
            f"advertised.listeners=PLAINTEXT://{self.bootstrap},LINKED://{LOOPBACK}:{self.link.port}",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,LINKED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            f"broker.session.timeout.ms={SESSION_MS}",
            f"default.replication.factor={replicas}",
            f"min.insync.replicas={in_sync}",
            f"offsets.topic.replication.factor={replicas}",
            f"transaction.state.log.replication.factor={replicas}",
            f"transaction.state.log.min.isr={in_sync}",
            f"share.coordinator.state.topic.replication.factor={replicas}",
            f"share.coordinator.state.topic.min.isr={in_sync}",
        )
        # Of a property that is named twice, Java takes the last.
        path.write_text(path.read_text() + "\n".join(more) + "\n")
        return path


class Brokers(KafkaBroker):
    """So many brokers, started, stopped and killed as one. `nodes` are the single ones.

    Args:
        run: the run they belong to.
        size: how many; every partition has a replica on each.
    """

    def __init__(self, run: RunDirectory, size: int) -> None:
        super().__init__(run, default_cache(os.environ))
        self.nodes = [Node(run, number, 512 if size == 1 else 320) for number in range(1, size + 1)]
        for node in self.nodes:
            node.join(self.nodes)

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers that no link lies before."""
        return ",".join(node.bootstrap for node in self.nodes)

    @property
    def linked(self) -> str:
        """Bootstrap servers behind the links."""
        return ",".join(f"{LOOPBACK}:{node.link.port}" for node in self.nodes)

    @property
    def links(self) -> list[Link]:
        """The links to all of them."""
        return [node.link for node in self.nodes]

    def start(self) -> None:
        """Start those that do not run, side by side: one alone would wait for a quorum."""
        self._all(KafkaBroker.start, [node for node in self.nodes if node.process is None or node.process.pid is None])

    def stop(self) -> None:
        """Stop all of them in order."""
        self._all(KafkaBroker.stop, self.nodes)

    def kill(self) -> None:
        """End all of them by SIGKILL."""
        self._all(KafkaBroker.kill, self.nodes)

    def check(self) -> None:
        """Raise `ProcessExited` when one ended by itself."""
        for node in self.nodes:
            node.check()

    def close(self) -> None:
        """End the links."""
        for link in self.links:
            link.close()

    def _all(self, act: Callable[[KafkaBroker], None], nodes: Iterable[Node]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(act, nodes))
