"""Claims: which of the tellings of an event is routed. One Lua call a batch, on Redis Cluster one per bucket.

A claim's key stands for (service, id); its value lists fingerprints, each with the owner that claimed it, the place
`topic:partition:offset:index` of the record. Keys are spread over hash-tagged buckets so that one call touches one
slot of a Redis Cluster. A claim stands `ttl_s` seconds from the first telling of its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import IntEnum
from hashlib import sha1
from typing import Any, Protocol

from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from agents.routing.identity import EventIdentity

_MAX_CONTENTS = 16
"""How many contents of one id are told apart; further ones are routed unclaimed, never dropped."""

# ARGV[i + 1] is the 16 bytes of the fingerprint, then the owner. A value is such entries, separated by line feeds;
# a fingerprint may contain one, so entries are walked, not split. Redis 6.2 has SET's NX and GET only apart.
_LUA = f"""
local out = {{}}
for i = 1, #KEYS do
  local claim = ARGV[i + 1]
  if redis.call('SET', KEYS[i], claim, 'NX', 'EX', ARGV[1]) then
    out[i] = '0'
  else
    local value = redis.call('GET', KEYS[i])
    local mine, found, entries, at = string.sub(claim, 1, 16), nil, 0, 1
    while at <= #value and not found do
      local stop = string.find(value, '\\n', at + 16, true) or #value + 1
      entries = entries + 1
      if string.sub(value, at, at + 15) == mine then found = string.sub(value, at, stop - 1) end
      at = stop + 1
    end
    if not found then
      if entries < {_MAX_CONTENTS} then redis.call('SET', KEYS[i], value .. '\\n' .. claim, 'KEEPTTL') end
      out[i] = '3'
    elseif found ~= claim then
      out[i] = '2'
    elseif entries == 1 then
      out[i] = '1'
    else
      out[i] = '3'
    end
  end
end
return table.concat(out)
"""
_SHA = sha1(_LUA.encode(), usedforsecurity=False).hexdigest()


class ClaimResult(IntEnum):
    """What a claim found. All but DUPLICATE go on."""

    FRESH = 0
    """Nobody has claimed this event yet."""
    OWNED = 1
    """The same owner again: a redelivery."""
    DUPLICATE = 2
    """Another owner has claimed the same content."""
    CONFLICT = 3
    """The id was claimed for other content; this one is routed too, or a reused id could hide a violation."""


_RESULTS = {ord(str(result.value)): result for result in ClaimResult}


_AWAY = (RedisError, RedisClusterException, OSError, TimeoutError, AttributeError)
"""What a call raises while Redis is away; the last, where a cluster client drops a connection that is in use."""


class ClaimsUnavailable(ConnectionError):
    """Redis cannot be asked now. Nothing is known about the batch; claiming it again is safe."""


class ScriptClient(Protocol):
    """The part of `redis.asyncio.Redis` and `redis.asyncio.RedisCluster` that claims need."""

    def initialize(self) -> Any:
        """Learn which node has which slots, where that is not known and matters."""

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a loaded script."""

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Load and run a script."""


class Claims:
    """Claims in Redis.

    Args:
        redis: an asyncio Redis or Redis Cluster client that does not decode replies; its timeouts are the caller's.
        ttl_s: how long a claim stands, unless a call says otherwise.
        buckets: into how many hash-tagged groups keys are spread. Changing it forgets the claims made so far.
        prefix: the first part of every key.
        clustered: whether keys of different buckets must not go into one call, since they may lie on several nodes.
    """

    def __init__(
        self,
        redis: ScriptClient,
        ttl_s: int = 3600,
        buckets: int = 8,
        prefix: str = "flywheel:claim",
        clustered: bool = True,
    ) -> None:
        if not 1 <= buckets <= 256:
            raise ValueError(f"buckets is {buckets}; it must lie in 1..256")
        self._redis = redis
        self._clustered = clustered
        self.ttl_s = ttl_s
        self._prefixes = [f"{prefix}:{{{bucket:02x}}}:".encode() for bucket in range(buckets)]

    async def claim(self, batch: Sequence[tuple[EventIdentity, str]], ttl_s: int | None = None) -> list[ClaimResult]:
        """Claim each (identity, owner) of `batch`, in order, so an earlier one wins over a later one of the batch.

        Returns: one result an entry. Claiming the same batch again returns the same decisions.

        Raises:
            ClaimsUnavailable: Redis did not answer, or not with a result. Part of the batch may be claimed.
        """
        buckets = len(self._prefixes)
        groups: dict[int, tuple[list[int], list[bytes], list[bytes]]] = {}
        for position, (identity, owner) in enumerate(batch):
            digest = identity.digest()
            bucket = digest[0] % buckets
            call = bucket if self._clustered else 0
            group = groups.get(call)
            if group is None:
                group = groups[call] = ([], [], [])
            group[0].append(position)
            group[1].append(self._prefixes[bucket] + digest)
            group[2].append(bytes.fromhex(identity.fingerprint) + owner.encode())
        seconds = self.ttl_s if ttl_s is None else ttl_s
        results = [ClaimResult.FRESH] * len(batch)
        replies = await asyncio.gather(*(self._run(keys, claims, seconds) for _, keys, claims in groups.values()))
        for (positions, _, _), reply in zip(groups.values(), replies, strict=True):
            for position, code in zip(positions, reply, strict=True):
                results[position] = _RESULTS[code]
        return results

    async def _run(self, keys: list[bytes], claims: list[bytes], ttl_s: int) -> bytes:
        try:
            if self._clustered:
                # A cluster client that does not know the slots guesses, and once it has guessed wrong a few times it
                # drops the connections of calls in flight. Costs nothing where it knows them.
                await self._redis.initialize()
            try:
                reply = await self._redis.evalsha(_SHA, len(keys), *keys, ttl_s, *claims)
            except NoScriptError:  # first use of this server, or it has restarted
                reply = await self._redis.eval(_LUA, len(keys), *keys, ttl_s, *claims)
        except _AWAY as error:
            raise ClaimsUnavailable(f"Redis cannot be asked for claims: {error}") from error
        result = reply.encode() if isinstance(reply, str) else reply
        if not isinstance(result, bytes) or len(result) != len(keys):
            raise ClaimsUnavailable("Redis answered a claim script with something else")
        return result
