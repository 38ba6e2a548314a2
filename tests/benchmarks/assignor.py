"""How partitions are dealt out to workers: the time it takes, how evenly, and what moves when a worker leaves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from app.topics import AUDIT_EVENTS

GROUPS = ((8, 4), (256, 64), (1024, 256))
"""(partitions, workers) that the assignor is timed with."""
_TIMES = 5

Held = dict[str, set[int]]
"""The partitions of each member."""


def assignment(partitions: int, workers: int) -> dict[str, Any]:
    """How long the router's assignor takes, how evenly it deals, and how many partitions move when one worker leaves.

    It is Kafka's own round-robin one: Faust takes it where an app has no standby tables. Beside it stands Kafka's
    sticky one, which the routers do not use. `must_move` is what the leaving worker held.
    """
    cluster = ClusterMetadata()
    cluster.partitions_for_topic = lambda _: set(range(partitions))
    cluster.topics = lambda *_, **__: {AUDIT_EVENTS.name}
    names = [f"router-{number:04d}" for number in range(workers)]
    found: dict[str, Any] = {"partitions": partitions, "workers": workers}
    for prefix, assignor, member in (
        ("", RoundRobinPartitionAssignor, _plain_member),
        ("sticky_", StickyPartitionAssignor, _sticky_member),
    ):
        before, took = _dealt(assignor, cluster, {name: member(set()) for name in names}, partitions)
        # The middle one: the last leaves the others' turn as it was, which would flatter.
        left = names[workers // 2]
        stayed = {name: held for name, held in before.items() if name != left}
        after, _ = _dealt(assignor, cluster, {name: member(held) for name, held in stayed.items()}, partitions)
        found |= {
            f"{prefix}ms": round(took * 1e3, 3),
            f"{prefix}most": max(map(len, before.values())),
            f"{prefix}least": min(map(len, before.values())),
            f"{prefix}moved": sum(len(held - before[name]) for name, held in after.items()),
        }
        found["must_move"] = len(before[left])
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
    """One that tells what it held in the generation before."""
    places = [TopicPartition(AUDIT_EVENTS.name, number) for number in sorted(held)]
    told: Callable[..., ConsumerProtocolMemberMetadata] = StickyPartitionAssignor._metadata
    return told([AUDIT_EVENTS.name], places or None, 1)
