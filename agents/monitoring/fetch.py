"""Fetching one page of a service's recent items over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

EVALUATIONS_PATH = "/api/v1/metrics"
VIOLATIONS_PATH = "/api/v1/violations/recent"
OPTIMIZATIONS_PATH = "/api/v1/optimizations/recent"
NEXT_CURSOR = "X-Next-Cursor"


class FetchFailed(Exception):
    """The service did not answer, or not as its contract says."""


@dataclass(frozen=True, slots=True)
class Page:
    """Items, oldest first, and the cursor to go on with; None from a service that knows no cursors."""

    items: list[Any]
    cursor: str | None


Fetch = Callable[[str | None], Awaitable[Page]]
"""Fetches the page after a cursor (None: the first). Raises FetchFailed."""


def recent_evaluations(client: httpx.AsyncClient, base_url: str, timeout_s: float) -> Fetch:
    """The policy engine's recent evaluations."""
    return _fetch(client, f"{base_url.rstrip('/')}{EVALUATIONS_PATH}", {}, timeout_s, _evaluations)


def audit_items(client: httpx.AsyncClient, base_url: str, path: str, timeout_s: float) -> Fetch:
    """One of the audit engine's bare lists, from the log's beginning, so that none is left out."""
    return _fetch(client, f"{base_url.rstrip('/')}{path}", {"after": "0", "limit": "500"}, timeout_s, _bare)


def _fetch(
    client: httpx.AsyncClient,
    url: str,
    params: Mapping[str, str],
    timeout_s: float,
    items_of: Callable[[Any], Any],
) -> Fetch:
    async def fetch(cursor: str | None) -> Page:
        asked = dict(params) if cursor is None else {**params, "after": cursor}
        try:
            async with asyncio.timeout(timeout_s):
                response = await client.get(url, params=asked)
            response.raise_for_status()
            items = items_of(response.json())
        except TimeoutError as error:
            raise FetchFailed(f"{url} did not answer within {timeout_s:g} s") from error
        except httpx.HTTPStatusError as error:
            raise FetchFailed(f"{url} answered with status {error.response.status_code}") from error
        except httpx.HTTPError as error:
            raise FetchFailed(f"{url} did not answer ({type(error).__name__}); is it running?") from error
        except (ValueError, RecursionError) as error:
            raise FetchFailed(f"{url} answered with something that is no JSON") from error
        if not isinstance(items, list):
            raise FetchFailed(f"{url} answered without a list of items")
        return Page(items, response.headers.get(NEXT_CURSOR))

    return fetch


def _evaluations(body: Any) -> Any:
    return body.get("recent_evaluations") if isinstance(body, dict) else None


def _bare(body: Any) -> Any:
    return body
