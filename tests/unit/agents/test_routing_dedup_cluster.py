"""Claims while a Redis Cluster changes under them: a master dies and returns, a slot moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from agents.routing.dedup import ClaimResult as Result
from agents.routing.dedup import Claims, ClaimsUnavailable
from agents.routing.identity import EventIdentity
from app.embedded.redis_cluster import SLOTS, RedisCluster, RedisNode
from app.embedded.run_directory import RunDirectory

BUCKETS = 8
EVENTS = [EventIdentity("svc", str(number), "aa" * 16) for number in range(90)]


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster whose masters a test may end. It tells a dead master soon."""
    with RunDirectory.create(tmp_path) as run:
        cluster = RedisCluster(run, node_timeout_s=1.0)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def new_client(cluster: RedisCluster) -> ClusterClient:
    """A client that asks once more where it was not answered, then gives up: a worker's own would back off first."""
    return ClusterClient.from_url(cluster.url, retry=Retry(NoBackoff(), 1), socket_timeout=2)


async def by_master(cluster: RedisCluster, claims: Claims) -> dict[RedisNode, list[EventIdentity]]:
    """Claim every event for `a`, one at a time, and see at which of the masters a key came up."""
    found: dict[RedisNode, list[EventIdentity]] = {node: [] for node in cluster.nodes}
    sizes = dict.fromkeys(cluster.nodes, 0)
    for event in EVENTS:
        assert await claims.claim([(event, "a")]) == [Result.FRESH]
        for node in cluster.nodes:
            with node.client() as client:
                size = client.dbsize()
            if size > sizes[node]:
                sizes[node] = size
                found[node].append(event)
    assert sum(map(len, found.values())) == len(EVENTS)
    return found


def told(events: Sequence[EventIdentity], owner: str) -> list[tuple[EventIdentity, str]]:
    return [(event, owner) for event in events]


async def test_a_killed_master_makes_claims_unavailable_and_never_wrong(own_cluster: RedisCluster) -> None:
    async with aclosing(new_client(own_cluster)) as client:
        claims = Claims(client, buckets=BUCKETS)
        parts = await by_master(own_cluster, claims)
        alive, dead, _ = own_cluster.nodes
        assert all(parts.values()), "a master has no claim at all"

        dead.kill()
        for events in (EVENTS, parts[dead]):
            with pytest.raises(ClaimsUnavailable):
                await claims.claim(told(events, "b"))
        await _right_or_unavailable(claims, parts[alive], "b", Result.DUPLICATE)
        await asyncio.to_thread(own_cluster.wait_until_failed, dead)
        for events in parts.values():
            with pytest.raises(ClaimsUnavailable):
                await claims.claim(told(events, "b"))

        await asyncio.to_thread(_bring_back, own_cluster, dead)
        forgotten = set(parts[dead])
        assert await claims.claim(told(EVENTS, "a")) == [
            Result.FRESH if event in forgotten else Result.OWNED for event in EVENTS
        ], "only what the killed master held is forgotten"
        assert await claims.claim(told(EVENTS, "b")) == [Result.DUPLICATE] * len(EVENTS)


async def _right_or_unavailable(claims: Claims, events: list[EventIdentity], owner: str, right: Result) -> None:
    try:
        results = await claims.claim(told(events, owner))
    except ClaimsUnavailable:
        return
    assert results == [right] * len(events)


def _bring_back(cluster: RedisCluster, node: RedisNode) -> None:
    node.start()
    cluster.wait_until_served()


async def test_a_new_client_asks_the_right_masters_from_the_start(
    redis_cluster: RedisCluster, unique: Callable[[str], str]
) -> None:
    """A client that does not know the slots yet guesses; told that it guessed wrong, it drops what is in flight."""
    before = [_moved(node) for node in redis_cluster.nodes]
    for attempt in range(20):
        async with aclosing(new_client(redis_cluster)) as client:
            claims = Claims(client, buckets=BUCKETS, prefix=unique(f"new-{attempt}"))
            fresh, duplicate = [Result.FRESH] * len(EVENTS), [Result.DUPLICATE] * len(EVENTS)
            assert await claims.claim([*told(EVENTS, "a"), *told(EVENTS, "b")]) == fresh + duplicate
    assert [_moved(node) for node in redis_cluster.nodes] == before, "claims went to masters that have not got them"


def _moved(node: RedisNode) -> int:
    """How often a master had to say that a key is another's."""
    with node.client() as client:
        errors: dict[str, dict[str, int]] = client.info("errorstats")
    return errors.get("errorstat_MOVED", {}).get("count", 0)


async def test_while_the_cluster_is_down_nothing_but_unavailable_is_raised(own_cluster: RedisCluster) -> None:
    dead = own_cluster.nodes[2]
    async with aclosing(new_client(own_cluster)) as client:
        claims = Claims(client, buckets=BUCKETS)
        await claims.claim(told(EVENTS, "a"))
        dead.kill()
        for _ in range(5):
            with pytest.raises(ClaimsUnavailable):
                await claims.claim(told(EVENTS, "a"))
        await asyncio.to_thread(own_cluster.wait_until_failed, dead)
        for _ in range(10):
            with pytest.raises(ClaimsUnavailable):
                await claims.claim(told(EVENTS, "a"))
        own_cluster.kill()
        for _ in range(3):
            with pytest.raises(ClaimsUnavailable):
                await claims.claim(told(EVENTS, "a"))
        await asyncio.to_thread(own_cluster.start)
        assert await claims.claim(told(EVENTS, "a")) == [Result.FRESH] * len(EVENTS)
        assert await claims.claim(told(EVENTS, "b")) == [Result.DUPLICATE] * len(EVENTS)


async def test_a_client_made_while_no_node_answers_is_served_once_they_do(own_cluster: RedisCluster) -> None:
    own_cluster.kill()
    async with aclosing(new_client(own_cluster)) as client:
        claims = Claims(client, buckets=BUCKETS)
        with pytest.raises(ClaimsUnavailable):
            await claims.claim(told(EVENTS, "a"))
        await asyncio.to_thread(own_cluster.start)
        assert await claims.claim(told(EVENTS, "a")) == [Result.FRESH] * len(EVENTS)


async def test_claims_follow_a_slot_to_another_master(own_cluster: RedisCluster) -> None:
    async with aclosing(new_client(own_cluster)) as client:
        claims = Claims(client, buckets=1, prefix="moved")
        await claims.claim(told(EVENTS, "a"), ttl_s=100)
        await asyncio.to_thread(_move, own_cluster, key_slot(b"moved:{00}:"))
        assert await claims.claim(told(EVENTS, "a")) == [Result.OWNED] * len(EVENTS)
        assert await claims.claim(told(EVENTS, "b")) == [Result.DUPLICATE] * len(EVENTS)


def _move(cluster: RedisCluster, slot: int) -> None:
    """Move a slot with its keys to another master, as resharding does."""
    source = cluster.nodes[slot * len(cluster.nodes) // SLOTS]
    target = next(node for node in cluster.nodes if node is not source)
    with source.client() as old, target.client() as new:
        old_id, new_id = (str(client.execute_command("CLUSTER MYID"), "ascii") for client in (old, new))
        new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
        old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_id)
        keys = [key for key in old.scan_iter() if key_slot(key) == slot]
        password = target.url.partition("://:")[2].partition("@")[0]
        moved = old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH", password, "KEYS", *keys)
        assert moved == b"OK"
        for client in (new, old):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)
