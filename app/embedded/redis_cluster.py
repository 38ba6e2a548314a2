"""A private Redis Cluster of three masters, to prove that what asks Redis also works where keys live on several.

As with the single server: loopback only, behind a password drawn for the run, no data on disk. The nodes' own
protocol (the cluster bus) knows no password; it is loopback only too.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import redis

from app.embedded.errors import NotReady
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import log_shows
from app.embedded.redis import find_redis, write_configuration
from app.embedded.run_directory import RunDirectory
from app.embedded.server import Server

SLOTS = 16_384
"""Hash slots of a Redis Cluster."""

MASTERS = 3
"""The fewest that can agree that one of them has failed."""

BUS = 10_000
"""A node's bus port is its own port plus this: Redis 6.2 lets nobody choose it."""

_EPHEMERAL = 32_768
"""Where the ports begin that Linux gives to clients, unless told otherwise."""

_DRAWS = 50

_POLL_S = 0.05


def node_port() -> int:
    """A free port whose bus port, as a rule, is not one that clients are given either.

    A client's closed connection keeps its port for a minute, and a node that is started again has no other to take.
    """
    port = free_port()
    for _ in range(_DRAWS):
        if port + BUS < _EPHEMERAL:
            break
        port = free_port()
    return port


class RedisNode(Server):
    """One master: a child process that comes back at the same address, empty, when it is started again.

    Args:
        run: where its configuration and log lie.
        name: unique within the run.
        program: the server program.
        password: of every node of the cluster.
        node_timeout_s: how long a node is silent until the others take it for failed.
    """

    def __init__(self, run: RunDirectory, name: str, program: Path, password: str, node_timeout_s: float) -> None:
        super().__init__()
        self._run = run
        self.name = name
        self._program = program
        self._password = password
        self._node_timeout_ms = round(node_timeout_s * 1000)
        self.port: int | None = None

    @property
    def url(self) -> str:
        """`redis://` URL with the password, once it is started. A secret."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    def client(self) -> redis.Redis:
        """Connect to this node alone."""
        return redis.Redis.from_url(self.url, socket_timeout=5.0)

    def cluster_info(self) -> dict[str, str]:
        """Return what this node knows of the cluster (`CLUSTER INFO`); nothing while it cannot be asked."""
        try:
            with self.client() as client:
                info: dict[str, str] = client.execute_command("CLUSTER INFO")
        except redis.ConnectionError:
            return {}
        return info

    def _start_anew(self) -> ManagedProcess:
        port = node_port()
        argv = (str(self._program), str(self._configure(port)))
        program = Program(self.name, argv, ready=log_shows("Ready to accept connections"), stop_within=5.0)
        process = ManagedProcess(self._run, program)
        process.start()
        self.port = port
        return process

    def _configure(self, port: int) -> Path:
        folder = self._run.data / self.name
        folder.mkdir(mode=0o700, exist_ok=True)
        cluster = (
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {self._node_timeout_ms}",
            f"cluster-announce-ip {LOOPBACK}",
        )
        return write_configuration(folder, port, self._password, cluster)


class RedisCluster:
    """Three masters that share the slots evenly, without replicas: one that ends takes its slots with it.

    Args:
        run: where configurations and logs lie; one cluster a run.
        program: the server program of every node; looked for when the cluster is started, where None.
        node_timeout_s: how long a node is silent until the others take it for failed, in seconds.
        ready_within_s: how long the nodes may take to agree, in seconds.
    """

    def __init__(
        self,
        run: RunDirectory,
        program: Path | None = None,
        node_timeout_s: float = 5.0,
        ready_within_s: float = 30.0,
    ) -> None:
        self._run = run
        self._program = program
        self._node_timeout_s = node_timeout_s
        self._ready_within_s = ready_within_s
        self.nodes: tuple[RedisNode, ...] = ()
        """The masters, in the order of their slots; none before the cluster was started."""

    @property
    def url(self) -> str:
        """`redis://` URL of one node, from which a cluster client finds the others. A secret."""
        return self.nodes[0].url

    def start(self) -> None:
        """Start the masters and wait until all slots are served; started again, all is empty at the same addresses.

        Raises:
            ProgramMissing: there is no Redis server.
            ProcessError: a node did not start, or the nodes did not agree in time.
        """
        formed = bool(self.nodes)
        if not formed:
            program, password = self._program or find_redis(), secrets.token_urlsafe(24)
            self.nodes = tuple(
                RedisNode(self._run, f"redis-cluster-{number}", program, password, self._node_timeout_s)
                for number in range(MASTERS)
            )
        try:
            for node in self.nodes:
                node.start()
            if not formed:
                self._form()
            self.wait_until_served()
        except BaseException:
            self.stop()
            if not formed:
                self.nodes = ()
            raise

    def stop(self) -> None:
        """Stop all masters."""
        _each(self.nodes, RedisNode.stop)

    def kill(self) -> None:
        """End all masters by SIGKILL, as a crash would."""
        _each(self.nodes, RedisNode.kill)

    def check(self) -> None:
        """Raise `ProcessExited` when one ended by itself."""
        for node in self.nodes:
            node.check()

    def wait_until_served(self) -> None:
        """Wait until every master says that all slots are served; also to be called after one was started again.

        Raises:
            NotReady: they did not agree in time.
            ProcessExited: one ended by itself.
        """
        self._wait(
            lambda info: info.get("cluster_state") == "ok" and info.get("cluster_slots_ok") == str(SLOTS),
            "did not come to serve all slots",
        )

    def wait_until_failed(self, node: RedisNode) -> None:
        """Wait until the other masters hold one for failed, so that they serve nothing any more.

        Raises:
            NotReady: they did not in time.
        """
        others = tuple(other for other in self.nodes if other is not node)
        self._wait(lambda info: info.get("cluster_state") == "fail", "did not take a node for failed", others)

    def _form(self) -> None:
        """Deal out the slots and introduce the nodes to each other, as `redis-cli --cluster create` does."""
        bounds = [number * SLOTS // MASTERS for number in range(MASTERS + 1)]
        for number, (node, (first, end)) in enumerate(zip(self.nodes, pairwise(bounds), strict=True)):
            with node.client() as client:
                client.execute_command("CLUSTER ADDSLOTS", *range(first, end))
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        with self.nodes[0].client() as client:
            for node in self.nodes[1:]:
                client.execute_command("CLUSTER MEET", LOOPBACK, node.port)

    def _wait(
        self, holds: Callable[[dict[str, str]], bool], otherwise: str, nodes: tuple[RedisNode, ...] | None = None
    ) -> None:
        deadline = time.monotonic() + self._ready_within_s
        for node in self.nodes if nodes is None else nodes:
            while not holds(info := node.cluster_info()):
                node.check()
                if time.monotonic() > deadline:
                    what = f"{otherwise} within {self._ready_within_s:g} s"
                    said = "\n".join(f"{name}:{value}" for name, value in info.items())
                    raise NotReady(node.name, what, self._run.logs / f"{node.name}.log", said)
                time.sleep(_POLL_S)


def _each(nodes: Iterable[RedisNode], end: Callable[[RedisNode], None]) -> None:
    """End every node, whatever happens to one of them."""
    errors: list[Exception] = []
    for node in nodes:
        try:
            end(node)
        except Exception as error:  # noqa: BLE001 - every node gets its turn; all errors are raised below
            errors.append(error)
    if errors:
        raise ExceptionGroup("nodes of the Redis Cluster did not stop", errors)
