"""Claims against a real Redis."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from agents.routing.dedup import ClaimResult as Result
from agents.routing.dedup import Claims, ClaimsUnavailable
from agents.routing.identity import EventIdentity

CONTENT_A, CONTENT_B = "aa" * 16, "0a" * 16  # the second holds line feeds, which also separate entries


def identity(event_id: str, content: str = CONTENT_A, service: str = "svc") -> EventIdentity:
    return EventIdentity(service, event_id, content)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def prefix(unique: Callable[[str], str]) -> str:
    return unique("claim")


@pytest.fixture
def claims(redis: Redis, prefix: str) -> Claims:
    return Claims(redis, ttl_s=60, buckets=4, prefix=prefix)


async def test_the_four_results(claims: Claims) -> None:
    assert await claims.claim([(identity("x"), "t:0:1:0")]) == [Result.FRESH]
    assert await claims.claim([(identity("x"), "t:0:1:0")]) == [Result.OWNED]
    assert await claims.claim([(identity("x"), "t:0:2:0")]) == [Result.DUPLICATE]
    assert await claims.claim([(identity("x", CONTENT_B), "t:0:3:0")]) == [Result.CONFLICT]
    assert await claims.claim([(identity("x", CONTENT_B), "t:0:3:0")]) == [Result.CONFLICT], "its redelivery goes on"
    assert await claims.claim([(identity("x", CONTENT_B), "t:0:4:0")]) == [Result.DUPLICATE]
    assert await claims.claim([(identity("x", service="other"), "t:0:5:0")]) == [Result.FRESH]


async def test_a_batch_resolves_its_own_duplicates_in_order(claims: Claims) -> None:
    batch = [(identity(str(number % 50)), f"t:0:{number}:0") for number in range(100)]
    expected = [Result.FRESH] * 50 + [Result.DUPLICATE] * 50
    assert await claims.claim(batch) == expected
    assert await claims.claim(batch) == [Result.OWNED] * 50 + [Result.DUPLICATE] * 50, "the same decisions again"


async def test_a_claim_expires(claims: Claims, redis: Redis, prefix: str) -> None:
    await claims.claim([(identity("x"), "a"), (identity("x", CONTENT_B), "b")], ttl_s=100)
    (key,) = [key async for key in redis.scan_iter(match=f"{prefix}*")]
    assert 0 < await redis.ttl(key) <= 100
    await redis.delete(key)
    assert await claims.claim([(identity("x"), "other")]) == [Result.FRESH]


async def test_one_id_with_endless_contents_keeps_its_memory_bounded(claims: Claims, redis: Redis, prefix: str) -> None:
    contents = [f"{number:032x}" for number in range(40)]
    results = await claims.claim([(identity("x", content), f"t:0:{at}:0") for at, content in enumerate(contents)])
    assert results == [Result.FRESH] + [Result.CONFLICT] * 39
    (key,) = [key async for key in redis.scan_iter(match=f"{prefix}*")]
    assert await redis.strlen(key) < 16 * (16 + len("t:0:39:0") + 1)
    assert 0 < await redis.ttl(key) <= 60, "a conflict does not make the claim stand for ever"


async def test_keys_of_a_call_share_a_hash_tag(claims: Claims, redis: Redis, prefix: str) -> None:
    await claims.claim([(identity(str(number)), "o") for number in range(64)])
    keys = [key async for key in redis.scan_iter(match=f"{prefix}*")]
    tags = {key.split(b"{")[1].split(b"}")[0] for key in keys}
    assert len(keys) == 64
    assert tags == {b"00", b"01", b"02", b"03"}


async def test_a_restarted_server_has_lost_the_script(claims: Claims, redis: Redis) -> None:
    await claims.claim([(identity("x"), "a")])
    await redis.script_flush()
    assert await claims.claim([(identity("x"), "a")]) == [Result.OWNED]


async def test_every_order_of_tellings_routes_each_content_once(redis: Redis, unique: Callable[[str], str]) -> None:
    tellings = [(identity("x", content), f"t:0:{at}:0") for at, content in enumerate((CONTENT_A, CONTENT_B, CONTENT_A))]
    for order in itertools.permutations(tellings):
        claims = Claims(redis, ttl_s=60, prefix=unique(str(order)))
        results = [(await claims.claim([telling]))[0] for telling in order]
        assert sorted(results) == [Result.FRESH, Result.DUPLICATE, Result.CONFLICT]


async def test_without_redis_claims_are_unavailable() -> None:
    client = Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    with pytest.raises(ClaimsUnavailable):
        await Claims(client).claim([(identity("x"), "a")])
    await client.aclose()


async def test_a_reply_that_is_no_result_is_not_taken_for_one(redis: Redis, unique: Callable[[str], str]) -> None:
    prefix = unique("wrong")
    claims = Claims(redis, buckets=1, prefix=prefix)
    key = f"{prefix}:{{00}}:".encode() + identity("x").digest()
    await redis.lpush(key, "not a claim")
    with pytest.raises(ClaimsUnavailable):
        await claims.claim([(identity("x"), "a")])
