"""A network between worker and server that can be slow, cut, or full of nonsense: a TCP proxy on loopback."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from app.embedded.ports import LOOPBACK

_CHUNK = 65_536
_LINGER_S = 0.1


class Link:
    """Forwards connections to a loopback port, from a thread of its own.

    `delay_s` holds back every chunk of bytes by so many seconds, each way. `cut` breaks all connections, and while
    `down` is set new ones are closed at once. Between `answer_with` and `answer_truly` whoever connects and says
    something is told the given bytes, one after another, and never reaches the server.
    """

    def __init__(self, target: int) -> None:
        self.delay_s = 0.0
        self.down = False
        self._nonsense: Iterator[bytes] | None = None
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._accept, LOOPBACK, 0), self._loop)
        self._server = starting.result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break every connection that is open."""
        self._loop.call_soon_threadsafe(self._abort)

    def answer_with(self, nonsense: Sequence[bytes]) -> None:
        """Break every connection, and answer new ones with these."""
        self._nonsense = itertools.cycle(nonsense)
        self.cut()

    def answer_truly(self) -> None:
        """Let the server answer again."""
        self._nonsense = None

    def close(self) -> None:
        """End the proxy and all its connections."""

        async def end() -> None:
            self._server.close()
            self._abort()
            await asyncio.wait(self._tasks, timeout=5) if self._tasks else None

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        self._open.add(writer)
        try:
            if self.down:
                return
            with suppress(OSError):
                if self._nonsense is not None:
                    await _tell(reader, writer, next(self._nonsense))
                    return
                back, forth = await asyncio.open_connection(LOOPBACK, self._target)
                ends.append(forth)
                self._open.add(forth)
                await asyncio.gather(self._pump(reader, forth), self._pump(back, writer))
        finally:
            for end in ends:
                end.transport.abort()
                self._open.discard(end)
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError  # one end is gone: so is the other


async def _tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Hear the question out, so that the answer is not lost to a reset, and answer."""
    await reader.read(_CHUNK)
    with suppress(TimeoutError):
        while await asyncio.wait_for(reader.read(_CHUNK), _LINGER_S):
            pass
    writer.write(answer)
    await writer.drain()
    await asyncio.sleep(_LINGER_S)
