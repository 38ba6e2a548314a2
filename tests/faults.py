"""Several routing workers side by side, and what their consumer group says of them: for the fault tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import httpx
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from fault_stream import INPUT, PARTITIONS, QUIET
from systems import wait_until

from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.system import WORKER_READY_S, System
from app.roles import Role
from app.settings.export import to_environment

OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
STOP_WITHIN_S = 15.0


class Worker:
    """One `flywheel worker` (`route`, where not told otherwise) with a web port of its own."""

    def __init__(self, system: System, name: str, role: Role = Role.ROUTE) -> None:
        port = free_port()
        web = system.settings.web.model_copy(update={f"{role.value}_port": port})
        settings = system.settings.model_copy(update={"web": web})
        argv = (sys.executable, "-m", "app", "worker", role.value)
        program = Program(name, argv, env=to_environment(settings) | system.environment, stop_within=2 * STOP_WITHIN_S)
        self.name = name
        self.url = f"http://{LOOPBACK}:{port}"
        self.process: ManagedProcess = system.stack.add(ManagedProcess(system.run, program))
        self.member = ""
        """Its member id in the consumer group, where it was started alone."""
        self._asked_at = 0.0

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self.process.pid is not None, f"{self.name} does not run"
        return self.process.pid

    def wait_ready(self) -> None:
        """Wait until its web server answers."""
        wait_until(self._is_ready, f"{self.name} is up", WORKER_READY_S)

    def stats(self) -> dict[str, Any]:
        """The router's counters, once they have been seen to add up."""
        answer = httpx.get(f"{self.url}/stats", timeout=30.0, trust_env=False)
        routing: dict[str, Any] = answer.raise_for_status().json()["routing"]
        assert routing["in"] == sum(routing[name] for name in OUTCOMES), f"{self.name} does not add up: {routing}"
        return routing

    def wait_logged(self, text: str) -> None:
        """Wait until its log says so."""
        wait_until(lambda: text in self.process.log(), f"{self.name} says: {text}")

    def pause(self) -> None:
        """Freeze it, as a machine does that is suspended."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run on where it was frozen."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it by SIGKILL at once."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.kill()

    def ask_to_stop(self) -> None:
        """Send it the signal that an orderly stop begins with."""
        self._asked_at = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)

    def wait_stopped(self) -> None:
        """Wait for it to end by itself, with code 0, within `STOP_WITHIN_S` of being asked."""
        pid = self.pid
        left = self._asked_at + STOP_WITHIN_S - time.monotonic()
        wait_until(lambda: not self.process.running, f"{self.name} stops", max(0.0, left))
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert ended is not None
        print(f"{self.name} stopped in {time.monotonic() - self._asked_at:.1f} s")
        assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0), f"{self.name} ended by {ended}"
        self.process.stop()

    def _is_ready(self) -> bool:
        self.process.check()
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False


class Fleet:
    """The routing workers of a system, and what their consumer group says of them.

    Args:
        system: with its broker and Redis started.
        partitions: how many the input topic has.
    """

    def __init__(self, system: System, partitions: int = PARTITIONS) -> None:
        self.system = system
        self.group = f"{system.settings.kafka.group_prefix}-{Role.ROUTE.value}"
        self._partitions = partitions
        self.bootstrap = system.stack.broker.bootstrap
        self.workers: list[Worker] = []

    def start(self, count: int = 1) -> None:
        """Start workers side by side, and wait until all that run share the partitions."""
        known = self.members().keys()
        for _ in range(count):
            self.workers.append(Worker(self.system, f"router-{len(self.workers) + 1}"))
        for worker in self.workers[-count:]:
            worker.wait_ready()
        self.wait_shared(len(self.running()))
        if count == 1:
            (self.workers[-1].member,) = self.members().keys() - known

    def stop(self) -> None:
        """Stop all workers that run, side by side, each gracefully."""
        stopping = self.running()
        for worker in stopping:
            worker.ask_to_stop()
        for worker in stopping:
            worker.wait_stopped()

    def running(self) -> list[Worker]:
        """The workers that have not been ended."""
        return [worker for worker in self.workers if worker.process.pid is not None]

    def members(self) -> dict[str, set[int]]:
        """Member id to the input partitions it holds; empty while the group is in between."""
        # A new client each time: one that lost its broker may wait for the group's coordinator for ever.
        admin = AdminClient({**QUIET, "bootstrap.servers": self.bootstrap})
        try:
            (described,) = admin.describe_consumer_groups([self.group], request_timeout=10).values()
            members = described.result().members
        except KafkaException:
            return {}
        return {member.member_id: set(_assigned(member)) for member in members}

    def wait_shared(self, count: int) -> None:
        """Wait until so many members hold all partitions between them, each at least one."""

        def shared() -> bool:
            held = list(self.members().values())
            every = sorted(partition for partitions in held for partition in partitions)
            return len(held) == count and all(held) and every == list(range(self._partitions))

        wait_until(shared, f"{count} workers share the partitions")

    def partitions(self, worker: Worker) -> set[int]:
        """The input partitions that a worker holds which was started alone."""
        return self.members()[worker.member]

    def total(self, name: str) -> int:
        """A counter, summed over the running workers."""
        return sum(worker.stats()[name] for worker in self.running())

    def wait_progress(self, records: int = 100) -> None:
        """Wait until each running worker has routed so many records more."""
        aims = [(worker, worker.stats()["in"] + records) for worker in self.running()]

        def reached(worker: Worker, aim: int) -> bool:
            return bool(worker.stats()["in"] >= aim)

        for worker, aim in aims:
            wait_until(partial(reached, worker, aim), f"{worker.name} goes on")


def _assigned(member: Any) -> Iterable[int]:
    places = member.assignment.topic_partitions if member.assignment else ()
    return (place.partition for place in places if place.topic == INPUT)
