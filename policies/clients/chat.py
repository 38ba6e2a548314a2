"""One exchange with an OpenAI-compatible chat endpoint: retried with care, bounded in time and size."""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

Why = Literal["unreachable", "timed_out", "rate_limited", "budget_used_up", "rejected", "not_understood", "too_long"]

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0
MAX_REPLY_BYTES = 256 * 1024
_MARGIN_S = 0.05
_TOO_MANY = 429
# Passing troubles: of the network, of a proxy, of a server under load.
_RETRIED = frozenset({408, 409, 425, _TOO_MANY, 500, 502, 503, 504, 529})

Admit = Callable[[float], Awaitable[None]]
"""Waits until an attempt may be made, at most until the deadline; raises NoAnswer."""


class NoAnswer(Exception):
    """There is no reply to be had. `why` says what kept it; the message repeats nothing of the texts.

    status: of the HTTP response, where there was one.
    """

    def __init__(self, why: Why, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.why = why
        self.status = status


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model wrote, and the tokens that the exchange used (None where the endpoint does not say).

    finished: false where the model was cut off before its end.
    """

    text: str
    finished: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None


@dataclass(frozen=True, slots=True)
class ChatServer:
    """Where an OpenAI-compatible API is and how it is asked.

    url: its base, such as `http://host:8000/v1`. token: its bearer token. timeout_s: of one attempt.
    retries: further attempts after a failure that may pass. concurrency: connections.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    retries: int = 2
    concurrency: int = 8

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url={self.url!r}: give the base of the API, such as http://host:8000/v1")


class ChatEndpoint:
    """Asks for completions, from an event loop. Connections are kept; close it."""

    def __init__(self, server: ChatServer) -> None:
        self._server = server
        self._url = server.url.rstrip("/") + "/chat/completions"
        headers = {"Accept-Encoding": "identity"}
        if server.token is not None:
            headers["Authorization"] = f"Bearer {server.token}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=server.timeout_s,
            limits=httpx.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency),
            trust_env=False,
        )

    async def complete(self, body: Mapping[str, Any], deadline: float, admit: Admit) -> Reply:
        """The reply to a request body; `admit` is awaited before every attempt.

        `deadline` is a time of `time.monotonic`. Raises NoAnswer.
        """
        for attempt in range(self._server.retries + 1):
            await admit(deadline)
            try:
                return await self._attempt(body, deadline)
            except _Passing as trouble:
                pause = max(_jittered(attempt), trouble.retry_after_s)
                if attempt == self._server.retries or time.monotonic() + pause >= deadline:
                    raise trouble.cause from None
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _attempt(self, body: Mapping[str, Any], deadline: float) -> Reply:
        # A little before the deadline, so that it is this attempt that is seen to fail.
        left = min(self._server.timeout_s, deadline - time.monotonic() - _MARGIN_S)
        try:
            # httpx' own timeouts bound each read, not the whole.
            async with asyncio.timeout(left), self._client.stream("POST", self._url, json=body) as response:
                data = await _bounded(response)
        except (TimeoutError, httpx.TimeoutException):
            raise _Passing(NoAnswer("timed_out", f"no reply within {max(left, 0.0):.1f} s")) from None
        except httpx.HTTPError as error:
            raise _Passing(NoAnswer("unreachable", f"{self._url}: {type(error).__name__}")) from None
        status = response.status_code
        if status in _RETRIED:
            why: Why = "rate_limited" if status == _TOO_MANY else "unreachable"
            raise _Passing(
                NoAnswer(why, f"{self._url} answered with status {status}", status), _retry_after_s(response)
            )
        if status != httpx.codes.OK:
            message = f"{self._url} answered with status {status}; check url, model and token"
            raise NoAnswer("rejected", message, status)
        return _reply(data)


class _Passing(Exception):
    """A trouble that may have passed when asked again."""

    def __init__(self, cause: NoAnswer, retry_after_s: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.retry_after_s = retry_after_s


async def _bounded(response: httpx.Response) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > MAX_REPLY_BYTES:
            raise NoAnswer("not_understood", f"the reply is larger than {MAX_REPLY_BYTES} bytes")
    return bytes(data)


def _reply(data: bytes) -> Reply:
    """The text of the first choice."""
    try:
        document = json.loads(data)
        choice = document["choices"][0]
        text = choice["message"]["content"]
        finished = choice.get("finish_reason") in {"stop", None}
        usage = document.get("usage") or {}
        used = [_count(usage.get(f"{what}_tokens")) for what in ("prompt", "completion", "total")]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise NoAnswer("not_understood", "the endpoint's answer is no chat completion") from None
    if not isinstance(text, str):
        raise NoAnswer("not_understood", "the endpoint's answer holds no text")
    return Reply(text, finished, *used)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _jittered(attempt: int) -> float:
    """Exponential back-off with full jitter, so that many who failed together do not come back together."""
    return random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**attempt))  # noqa: S311  no secret


def _retry_after_s(response: httpx.Response) -> float:
    """RFC 9110's Retry-After: seconds or a date; 0 where there is none that can be read."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
