"""An audit engine as a process of its own, and many writers at it: how much it takes, and what a kill leaves.

Plain functions; `conftest.py` puts this folder on the path, so a test says `from audit_rig import audit_engine`.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import http_ok
from app.embedded.run_directory import RunDirectory
from app.settings import Settings
from app.settings.export import to_environment
from app.wiring import audit_checkpoint, audit_config, audit_token
from models.audit import ChainReport
from policies.audit.engine import make_engine
from policies.audit.seal import KeyRing, SigningKey
from policies.audit.verify import Witness, verify_log

WRITER = Path(__file__).with_name("audit_writer.py")
READY_S = 120.0


@dataclass(frozen=True)
class AuditEngine:
    """A running audit engine. `process` may be killed and started again."""

    settings: Settings
    process: ManagedProcess

    def cpu_seconds(self) -> float:
        """CPU time of the engine since it started, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def verify(self) -> ChainReport:
        """Check the log from outside the engine, with its signed heads."""
        seal = audit_config(self.settings).seal
        assert seal is not None
        engine = make_engine(self.settings.audit_engine.database_url)
        try:
            keys = KeyRing([SigningKey(seal.signing_key).public])
            return verify_log(engine, Witness(keys, audit_checkpoint(self.settings)))
        finally:
            engine.dispose()


@dataclass(frozen=True)
class Load:
    """What the writers have receipts for: digest by entry id, and how long each took in milliseconds.

    `engine_cpu_s` is the CPU time that the engine used; it makes no sense where the engine was started anew meanwhile.
    """

    receipts: dict[str, str]
    latencies_ms: list[float]
    seconds: float
    engine_cpu_s: float

    @property
    def per_second(self) -> float:
        """Acknowledged entries a second."""
        return len(self.receipts) / self.seconds

    def latency_ms(self, share: float) -> float:
        """The latency that this share of the entries stayed under."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def audit_engine(
    run: RunDirectory, folder: Path, database_url: str, seal_interval_s: float = 1.0
) -> Iterator[AuditEngine]:
    """An audit engine on a free port, with keys and signed heads in `folder`. It ends with the block."""
    port = free_port()
    changes = {
        "host": LOOPBACK,
        "port": port,
        "url": f"http://{LOOPBACK}:{port}",
        "database_url": database_url,
        "seal_interval_s": seal_interval_s,
    }
    settings = Settings.model_validate({"data_dir": folder, "audit_engine": changes})
    program = Program(
        f"audit-engine-{port}",
        (sys.executable, "-m", "app", "audit-engine"),
        env=to_environment(settings),
        ready=http_ok(f"{settings.audit_engine.url}/health/ready"),
        ready_within=READY_S,
    )
    process = ManagedProcess(run, program)
    process.start()
    try:
        yield AuditEngine(settings, process)
    finally:
        process.stop()


@contextmanager
def writing(engine: AuditEngine, name: str, writers: int, seconds: float = math.inf) -> Iterator[list[Load]]:
    """Writers at work for so many seconds, or for as long as the block runs; their load is in the list after it."""
    address = (LOOPBACK, str(engine.settings.audit_engine.port))
    started, cpu = time.monotonic(), engine.cpu_seconds()
    processes = [
        subprocess.Popen(
            [sys.executable, "-I", str(WRITER), *address, f"{name}{number}", str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(writers)
    ]
    loads: list[Load] = []
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{audit_token(engine.settings)}\n")
            process.stdin.flush()
        yield loads
        outputs = [process.communicate(timeout=60 + (seconds if seconds < math.inf else 0))[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * writers
        lines = [line.split() for output in outputs for line in output.splitlines()]
        receipts = {line[0]: line[1] for line in lines}
        assert len(receipts) == len(lines), "an entry was acknowledged twice to one writer"
        took = min(seconds, time.monotonic() - started)
        loads.append(Load(receipts, [float(line[2]) for line in lines], took, engine.cpu_seconds() - cpu))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(run: RunDirectory, folder: Path, database_url: str, writers: int = 8, seconds: float = 10.0) -> Load:
    """Start an engine, have it written to for so long, stop it. Sealed as in production, once a minute."""
    with audit_engine(run, folder, database_url, seal_interval_s=60.0) as engine:
        with writing(engine, "warm-up", writers, 1.0):
            pass
        with writing(engine, "w", writers, seconds) as loads:
            pass
        report = engine.verify()
        assert report.ok, report.fault or report.checkpoint_fault
    return loads[0]
