"""The small broker: librdkafka's mock cluster, out of the confluent-kafka wheel, in a process of its own.

    python -m app.embedded.mock_broker --ready-file PATH [--brokers N]

Starts in under a second and needs neither Java nor a disk. Writes its bootstrap servers to PATH once it serves, and
ends with SIGTERM, SIGINT or its parent. It speaks the protocol well enough for producers (idempotent ones too),
consumer groups and committed offsets. What it does not do (measured with librdkafka 2.16):

- It keeps records in memory only, and of each partition only the last 5 MiB of record batches as they were sent
  (compressed, if they were). Older ones vanish whether they were read or not: a consumer that far behind loses them.
- A consumer group serves one member. It counts a group as synced once its leader is, so a member that is slower than
  the leader is refused (INVALID_REQUEST), which aiokafka does not forgive. A first join takes 3 s; when a member was
  killed, its successor waits for the session timeout.
- Topics cannot be declared: it names no controller, so admin clients fail. A topic appears when it is first used,
  always with 4 partitions; settings of topics do not exist, so neither do retention by time and compaction.
- No search by time (`offsets_for_times` finds nothing), produce answers bear a made-up append time (records keep
  their own), and transactions do not isolate: a `read_committed` consumer sees aborted records.
- No authentication, no TLS: it listens on loopback only.

For anything to be kept, take real Kafka (`app.embedded.kafka`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from app.embedded.errors import ProgramMissing
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import file_present
from app.embedded.run_directory import RunDirectory

if TYPE_CHECKING:
    from confluent_kafka import Producer

PARTITIONS = 4
"""Partitions of every topic; librdkafka's, not to be changed from Python."""

_PARENT_CHECK_S = 1.0
_METADATA_S = 10.0


class MockBroker:
    """The mock cluster as a child process. Stopping it loses everything it holds."""

    kind = "mock"
    declares_topics = False
    """Whether an admin client can create topics."""

    def __init__(self, run: RunDirectory) -> None:
        self._ready_file = run.data / "mock-broker.address"
        argv = (sys.executable, "-m", "app.embedded.mock_broker", "--ready-file", str(self._ready_file))
        ready = file_present(self._ready_file)
        self.process = ManagedProcess(run, Program("mock-broker", argv, ready=ready, stop_within=5.0))

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers, `host:port`, once it is started."""
        return self._ready_file.read_text().strip()

    def start(self) -> None:
        """Start it and wait until it serves. A stopped one starts again empty, at another address."""
        self._ready_file.unlink(missing_ok=True)
        self.process.start()

    def stop(self) -> None:
        """Stop it."""
        self.process.stop()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        self.process.kill()

    def check(self) -> None:
        """Raise `ProcessExited` when it ended by itself."""
        self.process.check()


def serve(brokers: int = 1) -> tuple[Producer, str]:
    """Start a mock cluster in this process: its owner, to be kept for as long as it shall serve, and its address.

    Raises:
        ProgramMissing: the confluent-kafka wheel is not installed.
    """
    try:
        from confluent_kafka import Producer
    except ImportError as error:
        what = "The mock broker needs the confluent-kafka wheel"
        raise ProgramMissing(what, "pip install 'constitutional-flywheel[embedded]'") from error
    owner = Producer({"test.mock.num.brokers": brokers, "log_level": 0})
    nodes = owner.list_topics(timeout=_METADATA_S).brokers.values()
    return owner, ",".join(sorted(f"{node.host}:{node.port}" for node in nodes))


def main(arguments: list[str] | None = None) -> int:
    """The command of this module."""
    parser = argparse.ArgumentParser(prog="app.embedded.mock_broker", description="librdkafka's mock cluster")
    parser.add_argument("--ready-file", type=Path, required=True, help="where to write the bootstrap servers")
    parser.add_argument("--brokers", type=int, default=1, help="number of brokers (1)")
    options = parser.parse_args(arguments)
    parent = os.getppid()
    endings = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)  # before librdkafka starts threads, which inherit the mask
    owner, bootstrap = serve(options.brokers)
    partial = options.ready_file.with_name(f".{options.ready_file.name}.partial")
    partial.write_text(f"{bootstrap}\n")
    partial.replace(options.ready_file)
    print(f"mock cluster at {bootstrap}", flush=True)
    while signal.sigtimedwait(endings, _PARENT_CHECK_S) is None and os.getppid() == parent:
        pass
    options.ready_file.unlink(missing_ok=True)
    del owner
    return 0


if __name__ == "__main__":
    sys.exit(main())
