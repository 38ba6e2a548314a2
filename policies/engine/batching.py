"""Gathers what arrives while the model is busy into the next batch, so that the event loop stays live."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio.to_thread

from policies.engine.combine import Verdict
from policies.engine.errors import EngineBusyError
from policies.engine.reading import Judged

Evaluate = Callable[[Sequence[Judged]], list[Verdict]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    texts: Sequence[Judged]
    answer: asyncio.Future[list[Verdict]]


class MicroBatcher:
    """One worker thread judges at a time; requests that arrive meanwhile share the next pass.

    There is no artificial delay: a lone request is judged at once. `run` must be running for `judge` to answer.
    """

    def __init__(self, max_texts: int, max_waiting: int) -> None:
        self._max_texts = max_texts
        self._max_waiting = max_waiting
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Texts that wait for their pass."""
        return sum(len(entry.texts) for entry in self._queue)

    async def judge(self, texts: Sequence[Judged]) -> list[Verdict]:
        """Verdicts in the order of the texts; EngineBusyError when too many are waiting already."""
        if self._queue and self.waiting + len(texts) > self._max_waiting:
            raise EngineBusyError(f"{self.waiting} texts are waiting (limit {self._max_waiting}); try again later")
        entry = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._arrived.set()
        return await entry.answer

    async def run(self, evaluate: Evaluate) -> None:
        """Serve until cancelled; whoever still waits then is cancelled too."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._queue:
                    await self._pass(self._next_batch(), evaluate)
        finally:
            for entry in self._queue:
                entry.answer.cancel()
            self._queue.clear()

    def _next_batch(self) -> list[_Waiting]:
        batch = [self._queue.popleft()]
        size = len(batch[0].texts)
        while self._queue and size + len(self._queue[0].texts) <= self._max_texts:
            batch.append(self._queue.popleft())
            size += len(batch[-1].texts)
        return batch

    async def _pass(self, batch: list[_Waiting], evaluate: Evaluate) -> None:
        texts = [text for entry in batch for text in entry.texts]
        try:
            verdicts = await anyio.to_thread.run_sync(evaluate, texts)
        except asyncio.CancelledError:
            for entry in batch:
                entry.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - belongs to the callers, and must not end the worker
            for entry in batch:
                if not entry.answer.done():
                    entry.answer.set_exception(error)
            return
        start = 0
        for entry in batch:
            if not entry.answer.done():  # its caller may have gone
                entry.answer.set_result(verdicts[start : start + len(entry.texts)])
            start += len(entry.texts)
