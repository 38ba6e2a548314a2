"""Partitions are dealt out completely, to one member each, evenly, and no more of them move than must."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from hypothesis import given
from hypothesis import strategies as st

from app.transport.fetching import ChunkConsumerThread
from app.transport.sticky import Place, StickyAssignor, deal

TOPICS = ("a", "b", "c")
MEMBERS = tuple(f"worker-{number}" for number in range(7))

partition_counts = st.dictionaries(st.sampled_from(TOPICS), st.integers(0, 24), min_size=1)
members = st.sets(st.sampled_from(MEMBERS), min_size=1)


def numbered(counts: dict[str, int]) -> dict[str, range]:
    return {topic: range(count) for topic, count in counts.items()}


def places(counts: dict[str, int]) -> set[Place]:
    return {(topic, number) for topic, count in counts.items() for number in range(count)}


def all_read(names: set[str]) -> dict[str, set[str]]:
    return {name: set(TOPICS) for name in names}


def must_move(held: dict[str, set[Place]], everything: set[Place], names: set[str]) -> int:
    """The fewest partitions that come to a member that did not hold them, where all read all topics evenly."""
    least, larger = divmod(len(everything), len(names))
    having = sorted((len(held.get(name, set()) & everything) for name in names), reverse=True)
    kept = sum(min(count, least + (rank < larger)) for rank, count in enumerate(having))
    return len(everything) - kept


@given(
    partition_counts,
    st.dictionaries(st.sampled_from(MEMBERS), st.sets(st.sampled_from(TOPICS)), min_size=1),
    st.dictionaries(st.tuples(st.sampled_from((*TOPICS, "gone")), st.integers(0, 30)), st.sampled_from(MEMBERS)),
)
def test_each_partition_goes_to_one_reader_whatever_was_held(
    counts: dict[str, int], reads: dict[str, set[str]], owners: dict[Place, str]
) -> None:
    held = {name: {place for place, owner in owners.items() if owner == name} for name in MEMBERS}
    dealt = deal(numbered(counts), reads, held)
    assert dealt.keys() == reads.keys()
    together = [place for some in dealt.values() for place in some]
    assert len(together) == len(set(together))
    assert set(together) == {place for place in places(counts) if any(place[0] in topics for topics in reads.values())}
    assert all(topic in reads[name] for name, some in dealt.items() for topic, _ in some)
    # Topics with the same readers are shared out together, within one.
    by_readers: dict[frozenset[str], set[str]] = {}
    for topic in counts:
        by_readers.setdefault(frozenset(n for n, topics in reads.items() if topic in topics), set()).add(topic)
    for readers, topics in by_readers.items():
        sizes = [sum(1 for topic, _ in dealt[name] if topic in topics) for name in readers]
        assert not sizes or max(sizes) - min(sizes) <= 1


@given(partition_counts, st.lists(members, min_size=2, max_size=6))
def test_no_more_moves_than_must_as_workers_come_and_go(counts: dict[str, int], groups: list[set[str]]) -> None:
    held: dict[str, set[Place]] = {}
    for names in groups:
        dealt = deal(numbered(counts), all_read(names), held)
        moved = sum(len(some - held.get(name, set())) for name, some in dealt.items())
        assert moved == must_move(held, places(counts), names)
        assert deal(numbered(counts), all_read(names), dealt) == dealt, "nothing happened, and something moved"
        held = dealt


@given(partition_counts, partition_counts, members)
def test_new_partitions_move_no_old_ones_further_than_even_shares_ask(
    before: dict[str, int], after: dict[str, int], names: set[str]
) -> None:
    held = deal(numbered(before), all_read(names), {})
    dealt = deal(numbered(after), all_read(names), held)
    moved = sum(len(some - held[name]) for name, some in dealt.items())
    assert moved == must_move(held, places(after), names)


def test_a_topic_is_spread_over_all_where_several_are_dealt() -> None:
    dealt = deal({"busy": range(8), "quiet": range(8)}, {f"w{n}": {"busy", "quiet"} for n in range(4)}, {})
    assert [sum(1 for topic, _ in some if topic == "busy") for some in dealt.values()] == [2, 2, 2, 2]


# --- as a consumer group uses it


class Group:
    """Members that join, one of which deals; what a broker would carry between them is carried as bytes."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.cluster = ClusterMetadata()
        self.cluster.partitions_for_topic = lambda topic: set(range(counts[topic])) if topic in counts else None
        self.members: dict[str, StickyAssignor] = {}

    def rebalance(self, *without: str, missed_by: str = "") -> dict[str, set[Place]]:
        """A dealing; members named are out of the group for it, and do not learn of it; `missed_by` is dealt to."""
        there = {name: member for name, member in self.members.items() if name not in without}
        joined = {}
        for name, member in there.items():
            told = member.metadata({"a"}).encode()
            joined[name] = ConsumerProtocolMemberMetadata.decode(told)
        dealt = next(iter(there.values())).assign(self.cluster, joined)
        for name, member in there.items():
            if name == missed_by:
                continue
            member.on_assignment(ConsumerProtocolMemberAssignment.decode(dealt[name].encode()))
        return {name: set(map(tuple, assignment.partitions())) for name, assignment in dealt.items()}


def test_a_worker_more_takes_its_share_and_no_other_partition_moves() -> None:
    group = Group({"a": 256})
    group.members = {f"worker-{number:02}": StickyAssignor() for number in range(64)}
    before = group.rebalance()
    assert {len(held) for held in before.values()} == {4}
    group.members["worker-64"] = StickyAssignor()
    after = group.rebalance()
    moved = sum(len(held - before.get(name, set())) for name, held in after.items())
    assert moved == len(after["worker-64"]) == 3
    del group.members["worker-10"]
    again = group.rebalance()
    assert sum(len(held - after[name]) for name, held in again.items()) == len(after["worker-10"])


def test_who_joins_again_and_keeps_what_it_held_tells_nothing_new() -> None:
    """Two workers that told a new number each time kept their group rebalancing for ever: 366 times in 90 s."""
    group = Group({"a": 12})
    group.members = {name: StickyAssignor() for name in ("x", "y")}

    def told(name: str) -> bytes:
        return bytes(group.members[name].metadata({"a"}).encode())

    group.rebalance(missed_by="y")
    before = told("x"), told("y")
    for _ in range(3):
        # The broker rebalances before y has heard: what x tells may not be the reason for the next time.
        group.rebalance(missed_by="y")
        assert (told("x"), told("y")) == before
    group.rebalance()
    assert told("x") == before[0]
    assert told("y") != before[1]
    settled = told("y")
    group.rebalance()
    assert (told("x"), told("y")) == (before[0], settled)


def test_who_was_away_claims_nothing_that_others_hold_by_now() -> None:
    group = Group({"a": 12})
    group.members = {name: StickyAssignor() for name in ("x", "y", "z")}
    group.rebalance()
    during = group.rebalance("z")
    after = group.rebalance()
    assert sum(len(held - during.get(name, set())) for name, held in after.items()) == len(after["z"]) == 4


@pytest.mark.parametrize("said", [b"", b"\xff", b"[]", b'{"held": 3}', b'{"held": {"a": ["x"]}}', b'{"dealing": "y"}'])
def test_who_says_nothing_of_use_is_dealt_to_all_the_same(said: bytes) -> None:
    group = Group({"a": 5})
    members = {"x": ConsumerProtocolMemberMetadata(0, ["a"], said), "y": StickyAssignor().metadata(["a"])}
    dealt = StickyAssignor().assign(group.cluster, members)
    assert sorted(p for assignment in dealt.values() for _, p in assignment.partitions()) == [0, 1, 2, 3, 4]


def test_a_topic_that_is_not_known_yet_is_no_error() -> None:
    dealt = StickyAssignor().assign(Group({}).cluster, {"x": StickyAssignor().metadata(["a"])})
    assert dealt["x"].partitions() == []


def test_workers_of_before_are_dealt_to_by_the_assignor_that_they_know() -> None:
    """Whoever of them leads; what they leave is then taken over from there: the first sticky dealing moves nothing."""
    assert StickyAssignor.name == RoundRobinPartitionAssignor.name
    group = Group({"a": 12})
    group.members = {"x": StickyAssignor(), "y": StickyAssignor()}
    joined: dict[str, Any] = {name: member.metadata({"a"}) for name, member in group.members.items()}
    joined |= {"of-before": RoundRobinPartitionAssignor.metadata({"a"})}
    ours = StickyAssignor().assign(group.cluster, joined)
    assert sorted(p for dealt in ours.values() for _, p in dealt.partitions()) == list(range(12))
    theirs = RoundRobinPartitionAssignor.assign(group.cluster, joined)
    RoundRobinPartitionAssignor.on_assignment(ours["of-before"])
    for name, member in group.members.items():
        member.on_assignment(ConsumerProtocolMemberAssignment.decode(theirs[name].encode()))
    before = {name: set(map(tuple, theirs[name].partitions())) for name in group.members}
    after = group.rebalance()
    assert all(after[name] >= before[name] for name in before)


def test_a_consumer_offers_one_assignor() -> None:
    """aiokafka sends a request to join for each that it is offered, and each is news to the broker."""
    consumer = ChunkConsumerThread._create_worker_consumer
    offered: list[Any] = []

    class Client:
        _isolation_level = None

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_partition_assignment_strategy":
                offered.extend(value)

    class Thread(ChunkConsumerThread):
        def __init__(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkConsumerThread.__mro__[1], "_create_worker_consumer", lambda *_: Client())
        consumer(Thread(), None)
    assert [one.name for one in offered] == [RoundRobinPartitionAssignor.name]
