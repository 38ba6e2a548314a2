"""Group commit: entries that arrive while a transaction runs share the next one.

What a transaction costs is the same for one entry as for eight. So the next one waits for the writers who were there
a moment ago, but for GATHER_S at most: whoever writes alone never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.audit import AuditReceipt
from policies.audit.chain import PreparedEntry
from policies.audit.errors import AuditStoreUnavailable, EntryConflict
from policies.audit.metrics import AuditMetrics
from policies.audit.store import AuditStore

GATHER_S = 0.002

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: PreparedEntry
    outcome: asyncio.Future[AuditReceipt]


class GroupWriter:
    """Takes entries from many coroutines and appends them one transaction at a time, in a thread of its own.

    `start` and `stop` belong to the event loop that calls `append`. `stop` writes what was accepted, then ends.
    """

    def __init__(
        self,
        store: AuditStore,
        metrics: AuditMetrics,
        *,
        queue_entries: int,
        batch_entries: int,
        write_timeout_s: float,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._batch_entries = batch_entries
        self._write_timeout_s = write_timeout_s
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue(queue_entries)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit-writer")
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._expected = 1
        self._missing = 0
        self._enough = asyncio.Event()

    def start(self) -> None:
        """Begin to take entries."""
        self._task = asyncio.create_task(self._run(), name="audit-writer")

    @property
    def alive(self) -> bool:
        """Whether entries are being taken."""
        return self._task is not None and not self._task.done() and not self._closing

    async def append(self, entry: PreparedEntry) -> AuditReceipt:
        """Append and return once durable.

        Raises EntryConflict; AuditStoreUnavailable when the queue is full, the database fails or the time is up (then
        the entry may still be written: repeat it with the same id).
        """
        if not self.alive:
            msg = "the audit engine is stopping; try again"
            raise AuditStoreUnavailable(msg)
        waiting = _Waiting(entry, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            msg = f"{self._queue.maxsize} audit entries wait to be written; try again, or give the database more speed"
            raise AuditStoreUnavailable(msg) from None
        if self._queue.qsize() >= self._missing:
            self._enough.set()
        try:
            async with asyncio.timeout(self._write_timeout_s):
                return await waiting.outcome
        except TimeoutError:
            msg = f"the audit entry was not written within {self._write_timeout_s:g} s; repeat it with the same id"
            raise AuditStoreUnavailable(msg) from None

    async def stop(self) -> None:
        """Refuse new entries, write those accepted, end the thread."""
        if self._task is None:
            return
        self._closing = True
        self._enough.set()
        await self._queue.put(None)
        await self._task
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while True:
            batch, last = await self._next_batch()
            if batch:
                await self._write(batch)
            if last:
                return

    async def _next_batch(self) -> tuple[list[_Waiting], bool]:
        batch: list[_Waiting] = []
        item = await self._queue.get()
        await self._gather()
        while item is not None:
            # Who gave up waiting will repeat the entry; writing it is still right, as it was accepted.
            batch.append(item)
            if len(batch) == self._batch_entries or self._queue.empty():
                break
            item = self._queue.get_nowait()
        self._metrics.waiting.set(self._queue.qsize())
        return batch, item is None

    async def _gather(self) -> None:
        """Wait for as many entries as there were writers a moment ago; one is taken from the queue already."""
        if self._closing or self._queue.qsize() + 1 >= self._expected:
            return
        self._missing = self._expected - 1
        self._enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await self._enough.wait()

    async def _write(self, batch: list[_Waiting]) -> None:
        entries = [waiting.entry for waiting in batch]
        started = time.perf_counter()
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._store.append_many, entries)
        except Exception as error:  # noqa: BLE001  whatever it is, the writers must hear of it and the queue go on
            for waiting in batch:
                _settle(waiting.outcome, _unavailable(error))
            _LOG.warning("%d audit entries were not written: %s", len(batch), _unavailable(error))
            return
        self._metrics.transaction_seconds.observe(time.perf_counter() - started)
        self._metrics.transaction_entries.observe(len(batch))
        self._expected = min(len(batch) + self._queue.qsize(), self._batch_entries)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            _settle(waiting.outcome, outcome)


def _unavailable(error: Exception) -> AuditStoreUnavailable:
    if isinstance(error, AuditStoreUnavailable):
        return AuditStoreUnavailable(*error.args)
    return AuditStoreUnavailable(f"the audit engine failed to write ({type(error).__name__}); try again")


def _settle(
    outcome: asyncio.Future[AuditReceipt], result: AuditReceipt | EntryConflict | AuditStoreUnavailable
) -> None:
    if outcome.done():
        return
    if isinstance(result, AuditReceipt):
        outcome.set_result(result)
    else:
        outcome.set_exception(result)
