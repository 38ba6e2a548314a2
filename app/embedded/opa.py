"""A private Open Policy Agent server, which loads the gate's bundle from a file or polls a worker for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.embedded.errors import ProgramMissing
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import http_ok
from app.embedded.run_directory import RunDirectory
from app.embedded.server import Server

PROGRAM_VARIABLE = "FLYWHEEL_OPA"

# OPA's heap is small, so by Go's default it is collected every few dozen questions, and one in a hundred waits for it.
# A collection at eleven times the live heap, some hundreds of MB, halves the 99th percentile (6 to 2.5 ms here).
GARBAGE_COLLECTION = {"GOGC": "1000"}


@dataclass(frozen=True, slots=True)
class BundleService:
    """Where OPA polls for the bundle: a worker's `/policies/bundle.tar.gz`."""

    url: str
    token: str | None = None
    poll_s: int = 1

    def configuration(self) -> Mapping[str, Any]:
        """OPA's own configuration for it."""
        service: dict[str, Any] = {"url": self.url}
        if self.token is not None:
            service["credentials"] = {"bearer": {"token": self.token}}
        polling = {"min_delay_seconds": self.poll_s, "max_delay_seconds": self.poll_s}
        bundle = {"service": "flywheel", "resource": "policies/bundle.tar.gz", "polling": polling}
        return {"services": {"flywheel": service}, "bundles": {"constitutional": bundle}}


def find_opa(environment: Mapping[str, str] = os.environ) -> Path:
    """The OPA program: the one that FLYWHEEL_OPA names, else the one on the path.

    Raises:
        ProgramMissing: there is none.
    """
    named = environment.get(PROGRAM_VARIABLE) or shutil.which("opa")
    if not named or not os.access(named, os.X_OK):
        raise ProgramMissing("The OPA program was not found", "docker/install/opa.sh   (needs Go)")
    return Path(named)


class OpaServer(Server):
    """An OPA server as a child process; started again, it listens at the same address.

    Args:
        run: where its configuration and log lie.
        bundle: a bundle's file or folder, watched for changes; or the service to poll for it.
        program: the OPA program; looked for when it is started, where None.
    """

    def __init__(self, run: RunDirectory, bundle: Path | BundleService, program: Path | None = None) -> None:
        super().__init__()
        self._run = run
        self._bundle = bundle
        self._program = program
        self._port: int | None = None

    @property
    def url(self) -> str:
        """Its address, once it is started."""
        return f"http://{LOOPBACK}:{self._port}"

    def _start_anew(self) -> ManagedProcess:
        self._port = free_port()
        program = self._program or find_opa()
        argv = [str(program), "run", "--server", "--skip-version-check", "--addr", f"{LOOPBACK}:{self._port}"]
        if isinstance(self._bundle, BundleService):
            argv += ["--config-file", str(self._write_configuration(self._bundle))]
            ready = http_ok(f"{self.url}/health")
        else:
            argv += ["--watch", "--bundle", str(self._bundle)]
            ready = http_ok(f"{self.url}/health?bundles=true")
        process = ManagedProcess(
            self._run, Program("opa", tuple(argv), env=GARBAGE_COLLECTION, ready=ready, stop_within=10.0)
        )
        process.start()
        return process

    def _write_configuration(self, service: BundleService) -> Path:
        path = self._run.data / "opa.json"
        # It may hold a token: arguments are seen by all, this file by its owner.
        path.touch(mode=0o600)
        path.write_text(json.dumps(service.configuration()), encoding="utf-8")
        return path
