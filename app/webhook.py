"""Delivers notices to a receiver by HTTP, signed, in order, again and again until it takes them.

Requests are those of Standard Webhooks (standardwebhooks.com, v1): `webhook-id`, `webhook-timestamp` and
`webhook-signature: v1,<base64 of HMAC-SHA256 over id.timestamp.body>`. A receiver answers 2xx once it has a notice;
the same one may come twice, under the same id. 410 says that it wants no more of this one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import sqlalchemy as sa

from app.store import Database, leases, outbox
from app.store.outbox import OutboxItem

logger = logging.getLogger(__name__)

LEASE = "webhook-relay"
IDLE_S = 1.0
BATCH = 20
_SLACK_S = 20.0
"""How much longer than an attempt the lease holds: nobody else delivers while this relay does."""


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """The receiver. `secret`: `whsec_` and base64, as Standard Webhooks writes it, or any text, whose bytes are taken.
    `pages`: where people find the pages, for the links in notices.
    """

    url: str
    secret: str
    timeout_s: float = 10.0
    most_wait_s: float = 600.0
    give_up_s: float = 72 * 3600.0
    pages: str | None = None


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` header of a request."""
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    mac = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(mac).decode()}"


class WebhookRelay:
    """Delivers notices until cancelled. One relay works at a time, by lease.

    Without a receiver, notices are put aside as they come: who names one later is not told of what is long past.
    """

    def __init__(
        self,
        database: Callable[[], Database],
        config: WebhookConfig | None,
        holder: str,
        first_wait_s: float = 1.0,
    ) -> None:
        self._database = database
        self._config = config
        self._holder = holder
        self._first_wait_s = first_wait_s
        self._failures = 0
        self._counts: Counter[str] = Counter()
        timeout = 10.0 if config is None else config.timeout_s
        self._lease_s = timeout + _SLACK_S
        self._client = httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=False)

    def snapshot(self) -> dict[str, int]:
        """Since the worker started: notices delivered, given up, and attempts that failed."""
        return {name: self._counts[name] for name in ("delivered", "given_up", "failed_attempts")}

    async def run(self) -> None:
        """Deliver for as long as the worker lives."""
        while True:
            wait_s = IDLE_S
            try:
                wait_s = await self.deliver_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, the notices stay and are tried again
                logger.warning("notices wait: %s", type(error).__name__)
            if wait_s:
                await asyncio.sleep(wait_s)

    async def deliver_once(self) -> float:
        """Deliver what waits, up to the first that the receiver does not take; returns how long to wait, in seconds."""
        items = await asyncio.to_thread(self._take)
        for item, written in items:
            if self._config is None:
                await asyncio.to_thread(self._mark, item.seq, None)
                continue
            refusal = await self._attempt(self._config, item)
            if refusal is not None and not refusal.final and not _is_older(written, self._config.give_up_s):
                self._failures += 1
                self._counts["failed_attempts"] += 1
                wait_s = self._wait_s(self._config, refusal.retry_after_s)
                logger.warning("notice %s waits %.0f s: %s", item.payload["id"], wait_s, refusal.reason)
                return wait_s
            self._failures = 0
            self._counts["delivered" if refusal is None else "given_up"] += 1
            if refusal is not None:
                logger.error("notice %s is given up: %s", item.payload["id"], refusal.reason)
            await asyncio.to_thread(self._mark, item.seq, None if refusal is None else refusal.reason)
        return 0.0 if items else IDLE_S

    async def close(self) -> None:
        """Close the connections and give the lease back."""
        await self._client.aclose()

        def release() -> None:
            with self._database().write() as connection:
                leases.release_if_held(connection, LEASE, self._holder)

        try:
            await asyncio.to_thread(release)
        except sa.exc.SQLAlchemyError as error:
            logger.warning("webhook lease not released: %s", type(error).__name__)

    async def _attempt(self, config: WebhookConfig, item: OutboxItem) -> _Refusal | None:
        body = orjson.dumps(_with_link(item.payload, config.pages))
        message_id, now = str(item.payload["id"]), int(time.time())
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(config.secret, message_id, now, body),
        }
        try:
            async with asyncio.timeout(config.timeout_s):
                answer = await self._client.post(config.url, content=body, headers=headers)
        except (httpx.HTTPError, TimeoutError) as error:
            return _Refusal(f"the receiver did not answer ({type(error).__name__})")
        if answer.is_success:
            return None
        wait = answer.headers.get("retry-after", "")
        reason = f"the receiver answered {answer.status_code}"
        return _Refusal(reason, answer.status_code == httpx.codes.GONE, float(wait) if wait.isdecimal() else 0.0)

    def _wait_s(self, config: WebhookConfig, asked_s: float) -> float:
        ceiling = min(config.most_wait_s, self._first_wait_s * 2.0 ** min(self._failures - 1, 20))
        jittered = ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
        return max(jittered, min(asked_s, config.most_wait_s))

    def _take(self) -> list[tuple[OutboxItem, str]]:
        with self._database().write() as connection:
            if leases.acquire(connection, LEASE, self._holder, self._lease_s) is None:
                return []
            # One at a time where each may take as long as the lease allows for.
            return outbox.pending_notices(connection, BATCH if self._config is None else 1)

    def _mark(self, seq: int, refusal: str | None) -> None:
        with self._database().write() as connection:
            if refusal is None:
                outbox.mark_delivered(connection, [seq])
            else:
                outbox.mark_refused(connection, seq, refusal)


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    final: bool = False
    retry_after_s: float = 0.0


def _with_link(payload: dict[str, Any], pages: str | None) -> dict[str, Any]:
    if pages is None:
        return payload
    data = payload["data"]
    path = f"/cycles/{data['cycle_id']}" if "cycle_id" in data else "/models"
    return payload | {"data": data | {"link": pages + path}}


def _is_older(written: str, seconds: float) -> bool:
    return datetime.fromisoformat(written) < datetime.now(UTC) - timedelta(seconds=seconds)
