"""How partitions are dealt out to workers: the time it takes, how evenly, and what moves as workers leave and come."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from app.topics import AUDIT_EVENTS
from app.transport.sticky import StickyAssignor

GROUPS = ((8, 4), (256, 64), (1024, 256))
"""(partitions, workers) that the assignor is timed with."""
_TIMES = 5

Held = dict[str, set[int]]
"""The partitions of each member."""


def assignment(partitions: int, workers: int) -> dict[str, Any]:
    """How long the workers' assignor takes, how evenly it deals, and how many partitions move when one leaves or comes.

    Beside it stands Kafka's round-robin one, which Faust takes where an app has no tables. `ms` is of the first
    dealing. `must_move` is what the leaving worker held, `must_move_to_new` the share of the one that comes.
    """
    cluster = ClusterMetadata()
    cluster.partitions_for_topic = lambda _: set(range(partitions))
    cluster.topics = lambda *_, **__: {AUDIT_EVENTS.name}
    names = [f"router-{number:04d}" for number in range(workers)]
    found: dict[str, Any] = {"partitions": partitions, "workers": workers}
    for prefix, assignor, member in (
        ("", StickyAssignor(), _sticky_member),
        ("roundrobin_", RoundRobinPartitionAssignor, _plain_member),
    ):
        before, took = _dealt(assignor, cluster, {name: member(set()) for name in names}, partitions)
        # The middle one: the last leaves the others' turn as it was, which would flatter.
        left = names[workers // 2]
        stayed = {name: held for name, held in before.items() if name != left}
        after, _ = _dealt(assignor, cluster, {name: member(held) for name, held in stayed.items()}, partitions)
        # The first by name, for the same reason.
        new = "router"
        more, _ = _dealt(
            assignor, cluster, {name: member(held) for name, held in {new: set(), **before}.items()}, partitions
        )
        found |= {
            f"{prefix}ms": round(took * 1e3, 3),
            f"{prefix}most": max(map(len, before.values())),
            f"{prefix}least": min(map(len, before.values())),
            f"{prefix}moved": sum(len(held - before[name]) for name, held in after.items()),
            f"{prefix}moved_to_new": sum(len(held - before.get(name, set())) for name, held in more.items()),
        }
        found["must_move"] = len(before[left])
        found["must_move_to_new"] = partitions // (workers + 1)
    return found


def _dealt(
    assignor: Any, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata], partitions: int
) -> tuple[Held, float]:
    """Who holds what, and the seconds it took, the median of some times."""
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        assigned = assignor.assign(cluster, members)
        times.append(time.perf_counter() - began)
    held = {name: {number for _, some in one.assignment for number in some} for name, one in assigned.items()}
    if sorted(number for some in held.values() for number in some) != list(range(partitions)):
        raise RuntimeError(f"{partitions} partitions were not each assigned once to {len(members)} workers")
    return held, statistics.median(times)


def _plain_member(_: set[int]) -> ConsumerProtocolMemberMetadata:
    return ConsumerProtocolMemberMetadata(0, [AUDIT_EVENTS.name], b"")


def _sticky_member(held: set[int]) -> ConsumerProtocolMemberMetadata:
    """One that tells what it held in the dealing before."""
    member = StickyAssignor()
    member.on_assignment(ConsumerProtocolMemberAssignment(0, [(AUDIT_EVENTS.name, sorted(held))], b""))
    return member.metadata([AUDIT_EVENTS.name])
