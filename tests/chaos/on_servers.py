"""Faults of brokers, Redis, PostgreSQL, the disk and the clock."""

from __future__ import annotations

import random
import time
from itertools import count

import redis

from chaos.fault import away, freeze, frozen_s
from chaos.site import Site

_PIECE = b"\0" * 32_768
_ROOM = 1024 * 1024


def one_broker_killed(site: Site, drawn: random.Random) -> None:
    """One of three is away, and work goes on without it: others lead its partitions once its session is over."""
    node = drawn.choice(site.brokers.nodes)
    node.kill()
    site.fleet.wait_progress()
    away(drawn)
    site.fleet.wait_progress()
    node.start()


def one_broker_frozen(site: Site, drawn: random.Random) -> None:
    """One of three comes back when others lead its partitions."""
    freeze(drawn.choice(site.brokers.nodes).process, frozen_s(drawn))


def brokers_in_turn(site: Site, _: random.Random) -> None:
    """A rolling restart of three."""
    for node in site.brokers.nodes:
        node.stop()
        node.start()


def brokers_killed(site: Site, _: random.Random) -> None:
    """kill -9 of all there are."""
    site.brokers.kill()
    site.brokers.start()


def brokers_restarted(site: Site, _: random.Random) -> None:
    """An orderly stop of all there are, and their start."""
    site.brokers.stop()
    site.brokers.start()


def redis_killed(site: Site, drawn: random.Random) -> None:
    """It comes back empty."""
    site.system.stack.redis.kill()
    away(drawn)
    site.system.stack.redis.start()


def redis_flushed(site: Site, _: random.Random) -> None:
    """All claims are gone from one moment to the next."""
    with site.redis() as client:
        client.flushall()


def redis_full(site: Site, drawn: random.Random) -> None:
    """Filled to its memory limit; under `noeviction`, the default, it then refuses writes."""
    with site.redis() as client:
        limit = int(client.info("memory")["used_memory"]) + _ROOM
        client.config_set("maxmemory", limit)
        ballast = []
        try:
            for number in count():
                key = f"ballast:{number}"
                client.set(key, _PIECE)
                ballast.append(key)
        except redis.exceptions.OutOfMemoryError:
            away(drawn)
        client.config_set("maxmemory", 0)
        client.delete(*ballast)


def redis_frozen(site: Site, drawn: random.Random) -> None:
    """It does not answer, and does not close a connection."""
    freeze(site.system.stack.redis.process, frozen_s(drawn))


def postgres_restarted(site: Site, _: random.Random) -> None:
    """An orderly stop, which breaks off the transactions that are open."""
    assert site.postgres is not None
    site.postgres.stop()
    site.postgres.start()


def postgres_killed(site: Site, drawn: random.Random) -> None:
    """kill -9 of all its processes."""
    assert site.postgres is not None
    site.postgres.kill()
    away(drawn)
    site.postgres.start()


def disk_full(site: Site, drawn: random.Random) -> None:
    """Not a byte is left where SQLite's files lie: the audit engine's, and on a site without PostgreSQL the store."""
    site.disk.fill()
    away(drawn)
    site.disk.clear()


def clocks_jump(site: Site, drawn: random.Random) -> None:
    """All workers' and engines' clock is set forth and back by some minutes, while leases are held."""
    assert site.clock is not None
    for _ in range(3):
        site.clock.set(drawn.uniform(-300.0, 300.0))
        time.sleep(drawn.uniform(1.5, 3.0))
    site.clock.set(0.0)
