"""All kinds of faults, and which of them a seed draws."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from chaos import on_networks as networks
from chaos import on_servers as servers
from chaos import on_workers as workers
from chaos.fault import SILENT_S, Fault
from chaos.on_workers import AUDIT, CURATION, POLICY
from chaos.site import Topology

FAULTS = (
    Fault("router killed (SIGKILL)", workers.killed_one(workers.routers), repeats=True),
    Fault("router stopped (SIGTERM)", workers.stopped_one(workers.routers)),
    Fault("router frozen past its session (SIGSTOP)", workers.router_frozen, repeats=True),
    Fault("curation killed (SIGKILL)", workers.killed(CURATION)),
    Fault("curation stopped (SIGTERM)", workers.stopped(CURATION)),
    Fault("curation frozen past its session (SIGSTOP)", workers.frozen(CURATION)),
    Fault("training worker killed (SIGKILL)", workers.killed_one(workers.trainers)),
    Fault("training worker stopped (SIGTERM)", workers.stopped_one(workers.trainers)),
    Fault("training worker frozen past its lease (SIGSTOP)", workers.frozen_one(workers.trainers)),
    Fault("monitoring killed (SIGKILL)", workers.monitoring_killed),
    Fault("monitoring stopped (SIGTERM)", workers.monitoring_stopped),
    Fault("policy engine killed (SIGKILL)", workers.killed_for_long(POLICY)),
    Fault("policy engine slow", networks.policy_slow),
    Fault("policy engine answers nonsense", networks.policy_nonsense),
    Fault("audit engine killed (SIGKILL)", workers.killed_for_long(AUDIT)),
    Fault("audit engine frozen (SIGSTOP)", workers.frozen(AUDIT, SILENT_S)),
    Fault("audit engine slow", networks.audit_slow),
    Fault("audit engine answers nonsense", networks.audit_nonsense),
    Fault("collector killed (SIGKILL)", workers.collector_killed, repeats=True, needs="collector"),
    Fault("collector restarted", workers.collector_restarted, needs="collector"),
    Fault("one of three brokers killed (SIGKILL)", servers.one_broker_killed, repeats=True, needs="three brokers"),
    Fault("one of three brokers frozen (SIGSTOP)", servers.one_broker_frozen, repeats=True, needs="three brokers"),
    Fault("three brokers restarted in turn", servers.brokers_in_turn, repeats=True, needs="three brokers"),
    Fault("all brokers killed (SIGKILL)", servers.brokers_killed, repeats=True),
    Fault("all brokers restarted", servers.brokers_restarted, repeats=True),
    Fault("network to Kafka slow", networks.kafka_slow, repeats=True),
    Fault("network to Kafka drops connections", networks.kafka_cut, repeats=True),
    Fault("Redis killed, its data lost", servers.redis_killed, forgets=True),
    Fault("Redis flushed", servers.redis_flushed, forgets=True),
    Fault("Redis filled to its memory limit", servers.redis_full),
    Fault("Redis frozen (SIGSTOP)", servers.redis_frozen),
    Fault("network to Redis slow", networks.redis_slow),
    Fault("network to Redis drops connections", networks.redis_cut),
    Fault("PostgreSQL restarted in mid-transaction", servers.postgres_restarted, needs="postgresql"),
    Fault("PostgreSQL killed (SIGKILL)", servers.postgres_killed, needs="postgresql"),
    Fault("network to PostgreSQL slow", networks.sql_slow, needs="postgresql"),
    Fault("network to PostgreSQL drops connections", networks.sql_cut, needs="postgresql"),
    Fault("disk full under SQLite", servers.disk_full, needs="own disk"),
    Fault("clocks jump, forth and back", servers.clocks_jump, needs="libfaketime"),
)


def named(name: str) -> Fault:
    """The fault of that name."""
    (found,) = (fault for fault in FAULTS if fault.name == name)
    return found


def drawn_faults(seed: int, count: int) -> list[Fault]:
    """The faults of a seed. Seeds that follow each other share a deck: each kind falls before any falls again."""
    start = (seed - 1) * count
    return list(islice(_decks(), start, start + count))


def drawn_topology(seed: int, faults: Iterable[Fault]) -> Topology:
    """The servers of a seed: what its faults need, the rest at random."""
    drawn = random.Random(f"{seed} topology")
    needs = {fault.needs for fault in faults}
    three = drawn.random() < 0.25 or "three brokers" in needs
    postgres = drawn.random() < 0.25 or "postgresql" in needs
    return Topology(3 if three else 1, "postgresql" if postgres else "sqlite")


def _decks() -> Iterator[Fault]:
    drawn = random.Random("decks")
    while True:
        yield from drawn.sample(FAULTS, len(FAULTS))
