"""One Apache Kafka node (KRaft, broker and controller in one) as a child process on loopback ports."""

from __future__ import annotations

import base64
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from app.embedded.errors import EmbeddedError
from app.embedded.kafka.jars import fetch_jars, find_java
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import log_shows
from app.embedded.run_directory import RunDirectory
from app.embedded.server import Server

_SERVER_PROPERTIES = Path(__file__).with_name("server.properties")
_FORMAT_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class _Ports:
    client: int
    controller: int


class KafkaBroker(Server):
    """A real Kafka. Its data and address last as long as the object: stopped or killed, it starts again where it was.

    Args:
        run: where its data, configuration and log lie.
        cache: the folder that holds the jars, or will.
        heap_mb: Java heap in MiB.
        name: of its log and its folder; unique within the run.
    """

    kind = "kafka"
    declares_topics = True
    """Whether an admin client can create topics."""
    ready_within_s = 60.0
    """How long a start may take."""
    _format_options: tuple[str, ...] = ()
    """Further arguments for the tool that formats the disk."""

    def __init__(self, run: RunDirectory, cache: Path, heap_mb: int = 512, name: str = "kafka") -> None:
        super().__init__()
        self.name = name
        self._run = run
        self._cache = cache
        self._heap_mb = heap_mb
        self._folder = run.data / name
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._ports: _Ports | None = None

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers, `host:port`, once it was started."""
        if self._ports is None:
            raise EmbeddedError("Kafka has no address before it is started. Call start() first")
        return f"{LOOPBACK}:{self._ports.client}"

    def _start_anew(self) -> ManagedProcess:
        java, jars = find_java(), fetch_jars(self._cache)
        ports = _Ports(client=free_port(), controller=free_port())
        properties = self._configure(ports)
        base = (str(java), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*")
        if not (self._folder / "logs" / "meta.properties").exists():
            self._format(base, properties)
        heap = (f"-Xms{min(256, self._heap_mb)}m", f"-Xmx{self._heap_mb}m")
        argv = (base[0], *heap, "-XX:+UseSerialGC", *base[3:], "kafka.Kafka", str(properties))
        ready = log_shows("Kafka Server started")
        within = self.ready_within_s
        program = Program(self.name, argv, cwd=self._folder, ready=ready, ready_within=within, stop_within=20.0)
        process = ManagedProcess(self._run, program)
        process.start()
        self._ports = ports
        return process

    def _configure(self, ports: _Ports) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        client, controller = f"{LOOPBACK}:{ports.client}", f"{LOOPBACK}:{ports.controller}"
        by_run = (
            f"listeners=PLAINTEXT://{client},CONTROLLER://{controller}",
            f"advertised.listeners=PLAINTEXT://{client}",
            f"controller.quorum.voters=1@{controller}",
            f"log.dirs={self._folder / 'logs'}",
        )
        path = self._folder / "server.properties"
        path.write_text(_SERVER_PROPERTIES.read_text() + "\n" + "\n".join(by_run) + "\n")
        return path

    def _format(self, base: tuple[str, ...], properties: Path) -> None:
        """Give the node's disk its identity, as `kafka-storage.sh format` does."""
        command = ("kafka.tools.StorageTool", "format", "-c", str(properties), f"--cluster-id={self._cluster_id}")
        made = subprocess.run(
            [*base, *command, *self._format_options],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_FORMAT_WITHIN_S,
            check=False,
        )
        if made.returncode != 0:
            raise EmbeddedError(f"Kafka's disk could not be formatted (code {made.returncode}):\n{made.stdout[-4000:]}")
