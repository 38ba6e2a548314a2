"""Connections to Redis: one server or a Redis Cluster, as the settings say."""

from __future__ import annotations

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from app.connections import AccessRefused, redis_access, redis_refusal
from app.settings import Settings
from app.telemetry.latency import ClientLatency

SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0

REDIS_ERRORS = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What a call raises when Redis is away or refuses; a cluster of which no node answers has an error of its own."""


def make_redis(
    settings: Settings, *, decode: bool = False, latency: ClientLatency | None = None
) -> Redis | RedisCluster:
    """A client, not connected yet; the caller closes it (`aclose`). `decode` makes replies text instead of bytes.

    `latency` is told how long commands take.

    Raises `redis.exceptions.RedisClusterException` where a cluster's URL names a database other than 0.
    """
    client = _make(settings, decode=decode)
    if latency is not None:
        latency.watch_redis(client)
    return client


def _make(settings: Settings, *, decode: bool) -> Redis | RedisCluster:
    url = settings.redis.url
    if settings.redis.cluster:
        return RedisCluster.from_url(
            url,
            **redis_access(settings),
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            decode_responses=decode,
        )
    return Redis.from_url(
        url,
        **redis_access(settings),
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        decode_responses=decode,
    )


async def check_redis(settings: Settings) -> None:
    """Raise `app.connections.AccessRefused` where Redis turns us away; one that is merely away may come back."""
    client = make_redis(settings)
    try:
        await client.ping()
    except REDIS_ERRORS as error:
        if (refusal := redis_refusal(error)) is not None:
            raise AccessRefused(refusal) from error
    finally:
        await client.aclose()
