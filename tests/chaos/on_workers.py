"""Faults of workers, engines and the collector."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from faults import Worker
from systems import wait_until

from chaos.fault import FROZEN_S, Act, away, freeze, frozen_s, unreachable
from chaos.site import ROUTERS, Site

CURATION, POLICY, AUDIT = "worker-curate", "policy-engine", "audit-engine"
SESSION_OVER_S = 30.0
"""A session is 6 s; a busy machine takes its time."""
Workers = Callable[[Site], list[Worker]]


def killed_one(workers: Workers) -> Act:
    """kill -9 of one of several workers, and its start."""

    def act(site: Site, drawn: random.Random) -> None:
        worker = drawn.choice(workers(site))
        worker.kill()
        worker.process.start()
        worker.wait_ready()

    return act


def stopped_one(workers: Workers) -> Act:
    """SIGTERM to one of several workers: it ends by itself, in time, with code 0. And its start."""

    def act(site: Site, drawn: random.Random) -> None:
        worker = drawn.choice(workers(site))
        worker.ask_to_stop()
        worker.wait_stopped()
        worker.process.start()
        worker.wait_ready()

    return act


def frozen_one(workers: Workers) -> Act:
    """A zombie, which comes back when another has taken over what it had."""

    def act(site: Site, drawn: random.Random) -> None:
        freeze(drawn.choice(workers(site)).process, frozen_s(drawn))

    return act


def router_frozen(site: Site, drawn: random.Random) -> None:
    """A zombie, which comes back when the other router has its partitions."""
    worker = drawn.choice(site.fleet.running())
    worker.pause()
    wait_until(lambda: len(site.fleet.members()) == ROUTERS - 1, "its partitions are given away", SESSION_OVER_S)
    site.stream.burst()
    time.sleep(drawn.uniform(0.0, 1.0))
    worker.go_on()


def killed(name: str) -> Act:
    """kill -9 of a process, and its start."""

    def act(site: Site, _: random.Random) -> None:
        site.process(name).kill()
        site.process(name).start()

    return act


def stopped(name: str) -> Act:
    """SIGTERM to a process, and its start."""

    def act(site: Site, _: random.Random) -> None:
        site.process(name).stop()
        site.process(name).start()

    return act


def killed_for_long(name: str) -> Act:
    """kill -9 of a process, which is away for a while."""

    def act(site: Site, drawn: random.Random) -> None:
        site.process(name).kill()
        away(drawn)
        site.process(name).start()

    return act


def frozen(name: str, for_s: tuple[float, float] = FROZEN_S) -> Act:
    """SIGSTOP of a process, for longer than its session or lease."""

    def act(site: Site, drawn: random.Random) -> None:
        freeze(site.process(name), drawn.uniform(*for_s))

    return act


def monitoring_killed(site: Site, _: random.Random) -> None:
    """kill -9 of the monitoring worker."""
    site.monitored.process.kill()
    site.monitored.restart()


def monitoring_stopped(site: Site, _: random.Random) -> None:
    """SIGTERM to the monitoring worker."""
    site.monitored.process.stop()
    site.monitored.restart()


def collector_killed(site: Site, drawn: random.Random) -> None:
    """kill -9 of the collector while Kafka is out of reach: what it has acknowledged lies in the queue on its disk."""
    assert site.collector is not None
    with unreachable(site.brokers.links):
        away(drawn)
        site.collector.kill()
    site.collector.start()


def collector_restarted(site: Site, _: random.Random) -> None:
    """SIGTERM to the collector, and its start."""
    assert site.collector is not None
    site.collector.stop()
    site.collector.start()


def routers(site: Site) -> list[Worker]:
    """The routing workers."""
    return site.fleet.running()


def trainers(site: Site) -> list[Worker]:
    """The training workers."""
    return site.trainers
