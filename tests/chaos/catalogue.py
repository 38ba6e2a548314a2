"""The faults: what each does, and what it may excuse at the outputs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.embedded.process import ManagedProcess
from chaos.site import Site

FROZEN_S = (8.0, 11.0)
"""Longer than the consumers' session of 6 s."""
AWAY_S = (2.0, 6.0)
Act = Callable[[Site, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Args:
        name: as the table tells it.
        act: does it, and ends it; returns with all parts running again.
        repeats: batches in flight may come again, with the same event ids.
        forgets: claims are lost, so a later telling of an event may be routed as well.
    """

    name: str
    act: Act
    repeats: bool = False
    forgets: bool = False


def _router_killed(site: Site, drawn: random.Random) -> None:
    worker = drawn.choice(site.fleet.running())
    worker.kill()
    worker.process.start()
    worker.wait_ready()


def _router_stopped(site: Site, drawn: random.Random) -> None:
    worker = drawn.choice(site.fleet.running())
    worker.ask_to_stop()
    worker.wait_stopped()
    worker.process.start()
    worker.wait_ready()


def _router_frozen(site: Site, drawn: random.Random) -> None:
    _freeze(drawn.choice(site.fleet.running()).process, drawn.uniform(*FROZEN_S))


def _curation_killed(site: Site, _: random.Random) -> None:
    site.curator.kill()
    site.curator.start()


def _curation_stopped(site: Site, _: random.Random) -> None:
    site.curator.stop()
    site.curator.start()


def _curation_frozen(site: Site, drawn: random.Random) -> None:
    _freeze(site.curator, drawn.uniform(*FROZEN_S))


def _broker_killed(site: Site, _: random.Random) -> None:
    site.system.stack.broker.kill()
    site.system.stack.broker.start()


def _broker_restarted(site: Site, _: random.Random) -> None:
    site.system.stack.broker.stop()
    site.system.stack.broker.start()


def _redis_killed(site: Site, drawn: random.Random) -> None:
    site.system.stack.redis.kill()
    time.sleep(drawn.uniform(*AWAY_S))
    site.system.stack.redis.start()


def _redis_flushed(site: Site, _: random.Random) -> None:
    with site.redis() as client:
        client.flushall()


def _redis_full(site: Site, drawn: random.Random) -> None:
    with site.redis() as client:
        client.config_set("maxmemory", 1)  # under `noeviction`, the default, every write is refused
        time.sleep(drawn.uniform(*AWAY_S))
        client.config_set("maxmemory", 0)


def _redis_frozen(site: Site, drawn: random.Random) -> None:
    process = site.system.stack.redis.process
    assert process is not None
    _freeze(process, drawn.uniform(*FROZEN_S))


def _network_slow(site: Site, drawn: random.Random) -> None:
    site.link.delay_s = drawn.uniform(0.05, 0.4)
    time.sleep(drawn.uniform(*AWAY_S))
    site.link.delay_s = 0.0


def _network_cut(site: Site, drawn: random.Random) -> None:
    for _ in range(drawn.randint(1, 5)):
        site.link.cut()
        time.sleep(drawn.uniform(0.05, 0.5))
    site.link.down = True
    site.link.cut()
    time.sleep(drawn.uniform(*AWAY_S))
    site.link.down = False


def _audit_killed(site: Site, drawn: random.Random) -> None:
    site.audit_engine.kill()
    time.sleep(drawn.uniform(*AWAY_S))
    site.audit_engine.start()


def _audit_frozen(site: Site, drawn: random.Random) -> None:
    _freeze(site.audit_engine, drawn.uniform(*FROZEN_S))


def _freeze(process: ManagedProcess, seconds: float) -> None:
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


FAULTS = (
    Fault("router killed (SIGKILL)", _router_killed, repeats=True),
    Fault("router stopped (SIGTERM)", _router_stopped),
    Fault("router frozen past its session (SIGSTOP)", _router_frozen, repeats=True),
    Fault("curation killed (SIGKILL)", _curation_killed),
    Fault("curation stopped (SIGTERM)", _curation_stopped),
    Fault("curation frozen past its session (SIGSTOP)", _curation_frozen),
    Fault("broker killed (SIGKILL)", _broker_killed, repeats=True),
    Fault("broker restarted", _broker_restarted, repeats=True),
    Fault("Redis killed, its data lost", _redis_killed, forgets=True),
    Fault("Redis flushed", _redis_flushed, forgets=True),
    Fault("Redis refuses writes (maxmemory)", _redis_full),
    Fault("Redis frozen (SIGSTOP)", _redis_frozen),
    Fault("network to Redis slow", _network_slow),
    Fault("network to Redis drops connections", _network_cut),
    Fault("audit engine killed (SIGKILL)", _audit_killed),
    Fault("audit engine frozen (SIGSTOP)", _audit_frozen),
)
