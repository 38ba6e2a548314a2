"""What a claim takes of Redis: memory, and CPU beside one server and beside a Redis Cluster of three masters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from redis.asyncio import Redis, RedisCluster

from agents.routing.dedup import Claims
from agents.routing.identity import EventIdentity
from app.embedded import redis_cluster
from app.embedded.redis import RedisServer
from app.embedded.run_directory import RunDirectory
from app.settings import Settings
from app.topics import AUDIT_EVENTS
from benchmarks.meter import process_cpu_s

CLAIMS = 100_000
BATCH = 500


def claiming(run: RunDirectory, count: int = CLAIMS) -> dict[str, Any]:
    """By the router's own code: bytes of a claim, and CPU of servers and client, in microseconds a claim.

    `shares` are the parts of all claims that each master of the cluster holds, by whole buckets.
    """
    buckets = Settings().routing.dedup_buckets
    server, cluster = RedisServer(run), redis_cluster.RedisCluster(run)
    try:
        server.start()
        one = asyncio.run(_cost(Redis.from_url(server.url), [server], count, buckets, clustered=False))
        cluster.start()
        client = RedisCluster.from_url(cluster.url)
        three = asyncio.run(_cost(client, list(cluster.nodes), count, buckets, clustered=True))
        held = []
        for node in cluster.nodes:
            with node.client() as asked:
                held.append(int(asked.dbsize()))
    finally:
        server.stop()
        cluster.stop()
    if sum(held) != count:
        raise RuntimeError(f"the masters hold {sum(held)} of {count} claims")
    shares = [round(some / count, 4) for some in held]
    return {"claims": count, "batch": BATCH, "buckets": buckets, "single": one, "cluster": three | {"shares": shares}}


async def _cost(
    client: Redis | RedisCluster, servers: list[Any], count: int, buckets: int, *, clustered: bool
) -> dict[str, float]:
    async with client:
        claims = Claims(client, buckets=buckets, clustered=clustered)
        # The connections, and the script at every master.
        await claims.claim(_batch(-BATCH))
        if isinstance(client, RedisCluster):
            await client.flushall(target_nodes=RedisCluster.PRIMARIES)
        else:
            await client.flushall()
        ours, theirs = time.process_time(), sum(_cpu_s(server) for server in servers)
        for first in range(0, count, BATCH):
            await claims.claim(_batch(first))
        ours, theirs = time.process_time() - ours, sum(_cpu_s(server) for server in servers) - theirs
    return {"redis_us": round(theirs / count * 1e6, 2), "client_us": round(ours / count * 1e6, 2)}


def claim_bytes(run: RunDirectory) -> float:
    """Redis' memory for a claim, by the router's own code."""
    server = RedisServer(run)
    server.start()

    async def measure() -> float:
        async with Redis.from_url(server.url) as redis:
            claims = Claims(redis, buckets=16, clustered=False)
            before = (await redis.info("memory"))["used_memory"]
            for first in range(0, CLAIMS, BATCH):
                await claims.claim(_batch(first))
            return float((await redis.info("memory"))["used_memory"] - before) / CLAIMS

    try:
        return round(asyncio.run(measure()), 1)
    finally:
        server.stop()


def _batch(first: int) -> list[tuple[EventIdentity, str]]:
    return list(_claims(first))


def _claims(first: int) -> Iterator[tuple[EventIdentity, str]]:
    for number in range(first, first + BATCH):
        identity = EventIdentity("assistant", f"{number % 2**64:032x}", f"{number % 2**64 * 7919 % 2**128:032x}")
        yield identity, f"{AUDIT_EVENTS.name}:17:{number}:499"


def _cpu_s(server: Any) -> float:
    if server.process is None or server.process.pid is None:
        raise RuntimeError("a Redis does not run")
    return process_cpu_s(server.process.pid)
