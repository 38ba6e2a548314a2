"""Faults of workers, engines and the collector."""

from __future__ import annotations

import random

from chaos.fault import Act, away, freeze, frozen_s
from chaos.site import Site

CURATION, TRAINING = "worker-curate", "worker-train"
POLICY, AUDIT = "policy-engine", "audit-engine"


def router_killed(site: Site, drawn: random.Random) -> None:
    """kill -9 of one of the routers."""
    worker = drawn.choice(site.fleet.running())
    worker.kill()
    worker.process.start()
    worker.wait_ready()


def router_stopped(site: Site, drawn: random.Random) -> None:
    """SIGTERM: it ends by itself, in time, with code 0."""
    worker = drawn.choice(site.fleet.running())
    worker.ask_to_stop()
    worker.wait_stopped()
    worker.process.start()
    worker.wait_ready()


def router_frozen(site: Site, drawn: random.Random) -> None:
    """A zombie, which comes back when others have its partitions."""
    freeze(drawn.choice(site.fleet.running()).process, frozen_s(drawn))


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


def frozen(name: str) -> Act:
    """SIGSTOP of a process, for longer than its session or lease."""

    def act(site: Site, drawn: random.Random) -> None:
        freeze(site.process(name), frozen_s(drawn))

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
    """kill -9 of the collector, which goes on with the queue on its disk."""
    assert site.collector is not None
    site.collector.kill()
    away(drawn)
    site.collector.start()


def collector_restarted(site: Site, _: random.Random) -> None:
    """SIGTERM to the collector, and its start."""
    assert site.collector is not None
    site.collector.stop()
    site.collector.start()
