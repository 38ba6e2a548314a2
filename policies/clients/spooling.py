"""Writing evaluation entries although the audit engine may be away: they wait in a spool and arrive in order.

Only evaluations may wait. A decision takes effect once the audit engine has it, so every other entry goes straight
there, or fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from models.audit import CONSTITUTIONAL_VALIDATION, AuditEntry
from policies.audit.chain import format_time, normalise_time, redacted_content
from policies.audit.errors import EntryRejected
from policies.audit.redact import canonical_json
from policies.clients.audit_client import AuditClient, AuditRefused, AuditUnavailable
from policies.clients.spool import Spool, Waiting

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
POLL_S = 2.0
"""How often what other processes have put into the spool is looked for."""

BATCH = 100
_UNPROCESSABLE = 422

_LOG = logging.getLogger(__name__)


class SpoolingAudit:
    """Takes audit entries; `log` can be given to PolicyEngineClient. Use it as an asynchronous context manager.

    An evaluation goes to the engine; when that is away, or others wait already, it is kept in the spool and delivered
    in the background, after those before it. Of several processes with one spool, one delivers at a time. Event text
    is digested with `digest_key` before anything is written or sent.
    """

    def __init__(
        self, client: AuditClient, spool: Spool, digest_key: bytes, first_pause_s: float = FIRST_PAUSE_S
    ) -> None:
        self._client = client
        self._spool = spool
        self._digest_key = digest_key
        self._first_pause_s = first_pause_s
        self._new = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.delivered = 0
        """Entries that waited and have arrived, since this object was made."""

    async def log(self, entry: AuditEntry) -> None:
        """Take an entry, durably.

        Raises AuditRefused where it can never be stored; AuditUnavailable where it is no evaluation and the engine is
        away; SpoolFull and SpoolUnavailable where it cannot be kept.
        """
        if entry.event_type != CONSTITUTIONAL_VALIDATION:
            await self._client.log(entry)
            return
        ready = self._ready(entry)
        if await asyncio.to_thread(self._spool.empty):
            try:
                await self._client.log(ready)
            except AuditUnavailable as error:
                _LOG.warning("evaluation entries wait in %s: %s", self._spool.path, error)
            else:
                return
        await asyncio.to_thread(self._spool.put, ready)
        self._new.set()

    async def aclose(self) -> None:
        """Stop delivering and close; what waits is delivered by whoever opens the spool next."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._client.aclose()
        await asyncio.to_thread(self._spool.close)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._deliver(), name="audit-spool")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _ready(self, entry: AuditEntry) -> AuditEntry:
        """The entry as it is sent, however often: with id and time, its event text digested."""
        own = {"entry_id": entry.entry_id or uuid4().hex}
        if entry.timestamp is None:
            own["timestamp"] = format_time(datetime.now(UTC))
        try:
            normalise_time(entry.timestamp)
            content = redacted_content(entry.model_copy(update=own), self._digest_key)
            canonical_json(content)
        except EntryRejected as error:
            raise AuditRefused(
                f"the audit entry {entry.entry_id!r} can never be stored: {error}", _UNPROCESSABLE
            ) from None
        return AuditEntry.model_validate(content)

    async def _deliver(self) -> None:
        pause = self._first_pause_s
        while True:
            self._new.clear()
            try:
                with _turn(self._spool.path) as mine:
                    while mine and await self._deliver_some():
                        pause = self._first_pause_s
            except AuditUnavailable as error:
                _LOG.warning("evaluation entries wait in %s: %s", self._spool.path, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  spreads retries, no secret
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._new.wait()

    async def _deliver_some(self) -> bool:
        """Deliver the oldest entries; whether there were any. Raises AuditUnavailable where one must be tried again."""
        waiting = await asyncio.to_thread(self._spool.oldest, BATCH)
        done: list[int] = []
        try:
            for item in waiting:
                if await self._send(item):
                    done.append(item.seq)  # noqa: PERF401  what was sent before one fails must count
        finally:
            if done:
                # Counted first: whoever finds the spool empty finds them counted.
                self.delivered += len(done)
                # If this is not reached, they are sent again, which changes nothing.
                await asyncio.shield(asyncio.to_thread(self._spool.delivered, done))
        return bool(waiting)

    async def _send(self, item: Waiting) -> bool:
        try:
            await self._client.log(item.entry)
        except AuditRefused as refusal:
            _LOG.error("an evaluation entry is refused for good and set aside in %s: %s", self._spool.path, refusal)
            await asyncio.to_thread(self._spool.set_aside, item.seq, str(refusal))
            return False
        return True


@contextmanager
def _turn(spool: Path) -> Iterator[bool]:
    """Whether this process is the one that delivers, for as long as the block runs."""
    try:
        spool.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(spool.with_name(f"{spool.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise AuditUnavailable(f"the lock beside {spool} cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
