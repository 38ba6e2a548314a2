"""Deals a consumer group's partitions out to its members: evenly, and with no more of them moved than must be.

Kafka's round-robin assignor, which Faust takes, deals anew at each rebalance: with one worker more, nearly all
partitions change hands. Here each member says what it held, and the leader deals by that. A wrong or missing word costs
moves, never correctness: each partition always goes to exactly one member.

Members of before, which know the round-robin assignor alone, may be in the group, so this one goes by its name: they
pass over what is said beside it, and where one of them leads, it deals as it always did. Two assignors cannot be
offered: aiokafka then asks to join once with the first and once with both, and the second asking makes the broker
rebalance anew; two members kept their group at that for ever.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

log = logging.getLogger(__name__)

Place = tuple[str, int]
"""A topic's partition."""


def deal(
    partitions: Mapping[str, Collection[int]],
    subscriptions: Mapping[str, Set[str]],
    held: Mapping[str, Set[Place]],
) -> dict[str, set[Place]]:
    """Who gets which partitions.

    Topics that the same members read are dealt together: each of these members gets as many of their partitions as any
    other, or one more. Of what a member held (no two the same), it keeps as much as that allows.

    Args:
        partitions: the numbers of each topic's partitions.
        subscriptions: the topics that each member reads.
        held: what each member had before; who is missing had nothing.
    """
    dealt: dict[str, set[Place]] = {member: set() for member in subscriptions}
    readers: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for topic in sorted(partitions):
        readers[tuple(sorted(m for m, topics in subscriptions.items() if topic in topics))].append(topic)
    for members, topics in readers.items():
        if members:
            _deal_together({topic: set(partitions[topic]) for topic in topics}, members, held, dealt)
    return dealt


def _deal_together(
    topics: Mapping[str, set[int]],
    members: Collection[str],
    held: Mapping[str, Set[Place]],
    dealt: Mapping[str, set[Place]],
) -> None:
    everything = {(topic, number) for topic, numbers in topics.items() for number in numbers}
    kept = {member: set(held.get(member, ())) & everything for member in members}
    least, larger = divmod(len(everything), len(members))
    # Whoever holds most gets one of the larger shares: so the fewest partitions move.
    ranked = sorted(members, key=lambda member: (-len(kept[member]), member))
    share = {member: least + (rank < larger) for rank, member in enumerate(ranked)}
    for member in members:
        _shrink(kept[member], share[member])
    free = everything.difference(*kept.values())
    for topic in sorted(topics):
        # Whoever has least of a topic gets its next one: a busy topic burdens all alike.
        having = [
            (sum(1 for of, _ in kept[member] if of == topic), member)
            for member in members
            if len(kept[member]) < share[member]
        ]
        heapq.heapify(having)
        for place in sorted(place for place in free if place[0] == topic):
            count, member = having[0]
            kept[member].add(place)
            if len(kept[member]) < share[member]:
                heapq.heapreplace(having, (count + 1, member))
            else:
                heapq.heappop(having)
    for member, places in kept.items():
        dealt[member].update(places)


def _shrink(places: set[Place], most: int) -> None:
    """Leave at most so many, first giving up those of the topic there are most of."""
    counts = Counter(topic for topic, _ in places)
    while len(places) > most:
        topic = max(sorted(counts), key=counts.__getitem__)
        places.remove(max(place for place in places if place[0] == topic))
        counts[topic] -= 1


class StickyAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka is untyped here
    """The assignor of one consumer. What it held it remembers itself, so each consumer has one of its own.

    The leader numbers its dealings, and each member remembers the last that changed what it holds. Where two members
    say that they held a partition, the later dealing counts: who came by it last was dealt to last.
    """

    name = RoundRobinPartitionAssignor.name
    version = 0

    def __init__(self) -> None:
        self._dealing = 0
        self._held: set[Place] = set()

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member tells the leader."""
        told = {"dealing": self._dealing, "held": _by_topic(self._held)}
        return ConsumerProtocolMemberMetadata(self.version, list(topics), json.dumps(told).encode())

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """The leader's part."""
        subscriptions = {name: set(metadata.subscription) for name, metadata in members.items()}
        partitions = {
            topic: cluster.partitions_for_topic(topic) or set() for topic in set().union(*subscriptions.values())
        }
        for topic in sorted(topic for topic, numbers in partitions.items() if not numbers):
            log.warning("no partitions are known of topic %s: it is read by nobody", topic)
        claims = {name: _claim(metadata.user_data) for name, metadata in members.items()}
        dealt = deal(partitions, subscriptions, _settled(claims))
        new = 1 + max((dealing for dealing, _ in claims.values()), default=0)
        # Who keeps exactly what it held keeps its number too, and so tells the broker nothing new when it joins again
        # (aiokafka's consumers do, after a late answer to a heartbeat): that would be another rebalance, in which
        # others miss what they were dealt, and so on for ever.
        return {
            name: ConsumerProtocolMemberAssignment(
                self.version,
                list(_by_topic(places).items()),
                json.dumps({"dealing": claims[name][0] if places == claims[name][1] else new}).encode(),
            )
            for name, places in dealt.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """What this member was dealt. A leader of before gives no number."""
        self._held = {(place.topic, place.partition) for place in assignment.partitions()}
        self._dealing = _claim(assignment.user_data)[0]


def _by_topic(places: Iterable[Place]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for topic, number in sorted(places):
        found[topic].append(number)
    return dict(found)


def _claim(user_data: bytes | None) -> tuple[int, set[Place]]:
    """The dealing that a member speaks of, and what it held by it; nothing where it says nothing of use."""
    try:
        told: Any = json.loads(user_data or b"{}")
        held = {(str(topic), int(number)) for topic, some in told.get("held", {}).items() for number in some}
        return int(told.get("dealing", 0)), held
    except (AttributeError, TypeError, ValueError):
        return 0, set()


def _settled(claims: Mapping[str, tuple[int, set[Place]]]) -> dict[str, set[Place]]:
    """What each member held, no two the same."""
    owner: dict[Place, str] = {}
    for name, (_, held) in sorted(claims.items(), key=lambda item: (item[1][0], item[0])):
        owner |= dict.fromkeys(held, name)
    settled: dict[str, set[Place]] = {name: set() for name in claims}
    for place, name in owner.items():
        settled[name].add(place)
    return settled
