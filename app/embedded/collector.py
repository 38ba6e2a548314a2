"""A private OpenTelemetry Collector with the project's configuration, which takes OTLP and writes to a broker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from app.embedded.errors import ProgramMissing
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import http_ok
from app.embedded.run_directory import RunDirectory
from app.embedded.server import Server

PROGRAM_VARIABLE = "FLYWHEEL_OTELCOL"
PROGRAM_NAME = "otelcol-flywheel"
CONFIG_PATH = Path(__file__).resolve().parents[2] / "otel" / "collector.yaml"

PROTOCOL_VERSIONS = {"mock": "2.3.0", "real": "2.8.0"}
"""The Kafka protocol that the collector is told to speak. librdkafka's mock broker claims more than it knows."""

Signal = Literal["logs", "traces", "metrics"]


def find_collector(environment: Mapping[str, str] = os.environ) -> Path:
    """The collector: the one that FLYWHEEL_OTELCOL names, else the one on the path.

    Raises:
        ProgramMissing: there is none.
    """
    named = environment.get(PROGRAM_VARIABLE) or shutil.which(PROGRAM_NAME)
    if not named or not os.access(named, os.X_OK):
        raise ProgramMissing("The OpenTelemetry Collector was not found", "docker/install/collector.sh   (needs Go)")
    return Path(named)


class CollectorServer(Server):
    """The collector as a child process; started again, it listens at the same addresses and goes on with its queue.

    Args:
        run: where its queue and log lie.
        brokers: bootstrap servers of Kafka.
        broker: `mock` or `real`; which protocol is spoken.
        program: the collector; looked for when it is started, where None.
        configs: configuration files, later ones merged over earlier ones.
        settings: further variables that the configuration reads.
    """

    ready_within_s = 90.0
    """How long a start may take: it compiles its statements first, some seconds of CPU, and more on a busy machine."""

    def __init__(
        self,
        run: RunDirectory,
        brokers: str,
        broker: Literal["mock", "real"],
        program: Path | None = None,
        configs: tuple[Path, ...] = (CONFIG_PATH,),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.brokers = brokers
        self._run = run
        self._broker = broker
        self._program = program
        self._configs = configs
        self._settings = dict(settings or {})
        self._ports: dict[str, int] = {}

    @property
    def grpc(self) -> str:
        """Its OTLP/gRPC endpoint, `host:port`, once it is started."""
        return self._address("grpc")

    @property
    def url(self) -> str:
        """Where it takes OTLP/HTTP, without the path of a signal."""
        return f"http://{self._address('http')}"

    @property
    def metrics_url(self) -> str:
        """Its Prometheus page of the metrics that it was sent."""
        return f"http://{self._address('prometheus')}/metrics"

    def endpoint(self, signal: Signal) -> str:
        """Where it takes a signal by OTLP/HTTP."""
        return f"{self.url}/v1/{signal}"

    def environment(self) -> dict[str, str]:
        """The variables that its configuration reads."""
        return {
            "KAFKA_BROKERS": self.brokers,
            "KAFKA_PROTOCOL_VERSION": PROTOCOL_VERSIONS[self._broker],
            "COLLECTOR_STORAGE": str(self._run.data / "collector"),
            "COLLECTOR_GRPC_ENDPOINT": self.grpc,
            "COLLECTOR_HTTP_ENDPOINT": self._address("http"),
            "COLLECTOR_HEALTH_ENDPOINT": self._address("health"),
            "COLLECTOR_PROMETHEUS_ENDPOINT": self._address("prometheus"),
            **self._settings,
        }

    def _address(self, name: str) -> str:
        return f"{LOOPBACK}:{self._ports[name]}"

    def _start_anew(self) -> ManagedProcess:
        self._ports = {name: free_port() for name in ("grpc", "http", "health", "prometheus")}
        configs = (part for path in self._configs for part in ("--config", str(path)))
        argv = (str(self._program or find_collector()), *configs)
        ready = http_ok(f"http://{self._address('health')}/")
        within = self.ready_within_s
        program = Program("collector", argv, env=self.environment(), ready=ready, ready_within=within, stop_within=30.0)
        process = ManagedProcess(self._run, program)
        process.start()
        return process
