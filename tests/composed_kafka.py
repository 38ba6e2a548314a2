"""Apache Kafka as a child process with the configuration that compose gives its image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.run_directory import RunDirectory


class ComposedKafka(KafkaBroker):
    """Apache Kafka with what compose tells its image, which turns KAFKA_A_B into a.b."""

    def __init__(self, run: RunDirectory, environment: Mapping[str, str]) -> None:
        super().__init__(run, default_cache(os.environ))
        self._environment = environment

    def _configure(self, ports: Any) -> Path:
        path = super()._configure(ports)
        by_run = dict(line.split("=", 1) for line in path.read_text().splitlines()[-4:])
        told = {
            name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in self._environment.items()
        }
        path.write_text("".join(f"{name}={value}\n" for name, value in {**told, **by_run}.items()))
        return path
