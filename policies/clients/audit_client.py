"""Writing to the audit engine over HTTP."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Self

import httpx
from pydantic import ValidationError

from models.audit import AuditEntry, AuditReceipt

LOG_PATH = "/api/v1/log"
DEFAULT_TIMEOUT_S = 10.0

# Only these speak of the entry. Anything else (a wrong token, a proxy's answer, an engine that stops) can be mended
# from outside, and then the same entry is good.
_REFUSALS = frozenset({400, 409, 413, 422})
_CONFLICT = 409


class AuditClientError(Exception):
    """Base of what `log` raises."""


class AuditUnavailable(AuditClientError):
    """The entry may or may not be in the log: send the same entry, with the same `entry_id`, again."""


class AuditRefused(AuditClientError):
    """The audit engine will never take this entry as it is."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class AuditConflict(AuditRefused):
    """Another entry with this `entry_id` is in the log."""


class AuditClient:
    """Writes entries, from an event loop. Connections are kept; close it, or use it as an asynchronous context manager.

    An entry without `entry_id` cannot be sent twice safely: give it one if it is to be retried. Nothing is retried
    here but the opening of a connection, once. `timeout_s` bounds a whole call.
    """

    def __init__(self, base_url: str, token: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers=bearer(token),
            timeout=timeout_s,
            transport=httpx.AsyncHTTPTransport(retries=1),
            trust_env=False,
        )

    async def log(self, entry: AuditEntry) -> AuditReceipt:
        """Write an entry; when this returns it is durable. Raises AuditUnavailable, AuditRefused."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post(LOG_PATH, content=_encode(entry), headers=_JSON)
        except (httpx.HTTPError, TimeoutError) as error:
            raise _unreachable(self._base_url, error) from error
        return _receipt(self._base_url, entry, response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class SyncAuditClient:
    """As `AuditClient`, for code without an event loop. `timeout_s` bounds each step of the exchange."""

    def __init__(self, base_url: str, token: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._base_url = base_url
        self._client = httpx.Client(
            base_url=base_url,
            headers=bearer(token),
            timeout=timeout_s,
            transport=httpx.HTTPTransport(retries=1),
            trust_env=False,
        )

    def log(self, entry: AuditEntry) -> AuditReceipt:
        """Write an entry; when this returns it is durable. Raises AuditUnavailable, AuditRefused."""
        try:
            response = self._client.post(LOG_PATH, content=_encode(entry), headers=_JSON)
        except httpx.HTTPError as error:
            raise _unreachable(self._base_url, error) from error
        return _receipt(self._base_url, entry, response)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_JSON = {"Content-Type": "application/json"}


def bearer(token: str | None) -> dict[str, str]:
    """The header that presents a token; none without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _encode(entry: AuditEntry) -> bytes:
    try:
        # The standard library's writer: it keeps half a surrogate pair as its escape, and does not turn NaN into null.
        return json.dumps(entry.model_dump(exclude_none=True), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        # Without its cause, which could show the entry's text in a traceback.
        msg = f"the audit entry {entry.entry_id!r} cannot be written as JSON ({type(error).__name__})"
        raise AuditRefused(msg, 422) from None


def _unreachable(base_url: str, error: Exception) -> AuditUnavailable:
    return AuditUnavailable(f"the audit engine at {base_url} did not answer ({type(error).__name__}); is it running?")


def _receipt(base_url: str, entry: AuditEntry, response: httpx.Response) -> AuditReceipt:
    status = response.status_code
    if status in _REFUSALS:
        kind = AuditConflict if status == _CONFLICT else AuditRefused
        # The answer's detail names fields, never their values.
        msg = f"the audit engine refused the entry {entry.entry_id!r} with status {status}: {_detail(response)}"
        raise kind(msg, status)
    if status != httpx.codes.OK:
        hint = "; check the token" if status in {401, 403} else ""
        raise AuditUnavailable(f"the audit engine at {base_url} answered with status {status}{hint}")
    try:
        receipt = AuditReceipt.model_validate_json(response.content, strict=True)
    except ValidationError:
        raise AuditUnavailable(f"the audit engine at {base_url} answered with something that is no receipt") from None
    if entry.entry_id is not None and receipt.id != entry.entry_id:
        raise AuditUnavailable(f"the audit engine at {base_url} answered with the receipt of another entry")
    return receipt


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return "no reason given"
    detail = body.get("detail") if isinstance(body, dict) else None
    return detail[:500] if isinstance(detail, str) else "no reason given"
