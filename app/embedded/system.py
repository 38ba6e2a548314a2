"""The whole system as child processes: broker, Redis, policy engine, audit engine and the workers of all roles."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import http_ok
from app.embedded.run_directory import RunDirectory
from app.embedded.stack import BrokerKind, Stack
from app.roles import Role, web_port
from app.settings import Settings
from app.settings.export import to_environment

ENGINES = ("audit-engine", "policy-engine")
THREAD_WAIT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""How long OpenMP's threads spin for the next piece of work. Spinning long made the same work three times slower beside
a busy neighbour on two cores, not spinning at all made it a third slower without one."""

ENGINE_READY_S = 180.0
WORKER_READY_S = 90.0


class System:
    """One running system. `settings` are the given ones with the addresses of what was started.

    Args:
        run: where logs, process records and data lie.
        settings: the configuration to run with.
        broker: `mock` or `real`.
        cache: where Apache Kafka's jars are kept.
        private: pick free ports and keep all data in the run's directory, so that runs side by side do not collide;
            otherwise ports and data are those of the settings.
    """

    def __init__(
        self, run: RunDirectory, settings: Settings, broker: BrokerKind, cache: Path, *, private: bool
    ) -> None:
        self.run = run
        self.stack = Stack(run, broker=broker, cache=cache)
        self.settings = _addressed(settings, run.data if private else None)
        self.processes: dict[str, ManagedProcess] = {}
        self.environment: dict[str, str] = {}
        """Further variables of engines and workers."""

    def start_stores(self) -> None:
        """Start broker and Redis; raises `app.embedded.errors.EmbeddedError`."""
        self.stack.start()
        broker = self.stack.broker
        self.change(
            {
                "kafka": {"bootstrap_servers": broker.bootstrap, "declare_topics": broker.declares_topics},
                "redis": {"url": self.stack.redis.url},
            }
        )

    def start_engines(self, names: Iterable[str] = ENGINES) -> None:
        """Start the policy engine and the audit engine (or the named one) side by side, and wait for them."""
        urls = {"audit-engine": self.settings.audit_engine.url, "policy-engine": self.settings.policy_engine.url}
        started = list(names)
        for name in started:
            self._start(name, [name])
        self.wait_for({f"{urls[name]}/health/ready": ENGINE_READY_S for name in started})

    def start_workers(self, roles: Iterable[Role] = tuple(Role)) -> None:
        """Start the workers of the roles side by side and wait until their web servers answer."""
        started = list(roles)
        for role in started:
            self._start(f"worker-{role.value}", ["worker", role.value])
        self.wait_for({f"{self.url(role)}/health/ready": WORKER_READY_S for role in started})

    def change(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change settings, section by section, for what is started from now on."""
        self.settings = _changed(self.settings, changes)

    def url(self, role: Role) -> str:
        """Where a role's web server is."""
        return f"http://{LOOPBACK}:{web_port(self.settings, role)}"

    def wait_for(self, urls: Mapping[str, float]) -> None:
        """Wait until each URL answers with success; raises `NotReady` or `ProcessExited`."""
        for url, within in urls.items():
            self._wait(url, within)

    def check(self) -> None:
        """Raise `ProcessExited` when a part has ended by itself."""
        self.stack.check()

    def stop(self) -> None:
        """Stop everything, latest first."""
        self.stack.stop()

    def _start(self, name: str, arguments: list[str]) -> None:
        program = Program(
            name,
            (sys.executable, "-m", "app", *arguments),
            env=THREAD_WAIT | to_environment(self.settings) | self.environment,
            stop_within=20.0,
        )
        self.processes[name] = self.stack.add(ManagedProcess(self.run, program))

    def _wait(self, url: str, within: float) -> None:
        ready = http_ok(url)
        deadline = time.monotonic() + within
        some = next(iter(self.processes.values()))
        while not ready(some):
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} was not ready within {within:.0f} s; see the logs in {self.run.logs}")
            time.sleep(0.1)


def _addressed(settings: Settings, data: Path | None) -> Settings:
    """The settings with loopback addresses and, for a private run, free ports and the run's own paths."""
    policy_port = free_port() if data else settings.policy_engine.port
    audit_port = free_port() if data else settings.audit_engine.port
    changes: dict[str, dict[str, Any]] = {
        "policy_engine": {"host": LOOPBACK, "port": policy_port, "url": f"http://{LOOPBACK}:{policy_port}"},
        "audit_engine": {"host": LOOPBACK, "port": audit_port, "url": f"http://{LOOPBACK}:{audit_port}"},
        "training": {"model_cache": settings.training.model_cache.absolute()},
    }
    if data:
        changes["audit_engine"]["database_url"] = f"sqlite:///{data.absolute()}/audit.db"
        changes["database"] = {"url": f"sqlite:///{data.absolute()}/flywheel.db"}
        changes["training"]["artifacts"] = data.absolute() / "models"
        changes["web"] = {f"{role.value}_port": free_port() for role in Role} | {"host": LOOPBACK}
        settings = settings.model_copy(update={"data_dir": data.absolute()})
    return _changed(settings, changes)


def _changed(settings: Settings, changes: Mapping[str, Mapping[str, Any]]) -> Settings:
    updated = {name: getattr(settings, name).model_copy(update=dict(fields)) for name, fields in changes.items()}
    return settings.model_copy(update=updated)
