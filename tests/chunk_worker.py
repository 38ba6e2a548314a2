"""A worker that reads through the chunk transport and tells what it got; `chunk_rig.py` starts it and talks to it.

`python chunk_worker.py CONFIG`. Its folder is how the two talk: `journal` is what it got and finished, `hold` keeps it
from finishing, `*.request` asks it to do something.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from faust.types import TP

from agents.consume import ConsumeConfig, consume
from agents.routing.message import InboundMessage
from app.transport import ChunkTransport

STEP_S = 0.02


@dataclass(frozen=True)
class Options:
    """What differs between workers.

    Args:
        poll_records: at most so many records in all the chunks of one fetch.
        batch_messages: a batch is full at so many.
        finish_s: how long finishing a batch takes.
        rebalance_timeout_s: so long the group waits for this member when it rebalances.
    """

    poll_records: int = 10
    batch_messages: int = 20
    finish_s: float = 0.0
    rebalance_timeout_s: float = 30.0


class ChunkedApp(faust.App):
    """Faust over the transport under test."""

    def _new_transport(self) -> ChunkTransport:
        return ChunkTransport(self.conf.broker_consumer, self)


class Recorder:
    """Writes down what it is handed and what it has finished."""

    def __init__(self, folder: Path, finish_s: float) -> None:
        self._hold = folder / "hold"
        self._finish_s = finish_s
        self._journal = (folder / "journal").open("a")

    async def prepare(self, messages: Sequence[InboundMessage]) -> Sequence[InboundMessage]:
        """Say what came."""
        for message in messages:
            headers = {name: value.decode() for name, value in message.headers.items()}
            self._note("got", message, _text(message.key), _text(message.value), headers)
        self._journal.flush()
        return messages

    async def finish(self, messages: Sequence[InboundMessage]) -> None:
        """Wait while the test says so, then say that it is done."""
        await asyncio.sleep(self._finish_s)
        while self._held(messages):  # noqa: ASYNC110 - the test is another process
            await asyncio.sleep(STEP_S)
        for message in messages:
            self._note("done", message)
        self._journal.flush()

    def _note(self, step: str, message: InboundMessage, *more: Any) -> None:
        entry = [step, message.topic, message.partition, message.offset, *more]
        self._journal.write(json.dumps(entry) + "\n")

    def _held(self, messages: Sequence[InboundMessage]) -> bool:
        """Whether the file says to wait: it names the first place not to finish, or none, which means all."""
        try:
            named = self._hold.read_text()
        except FileNotFoundError:
            return False
        if not named:
            return True
        topic, partition, offset = json.loads(named)
        return any(m.topic == topic and m.partition == partition and m.offset >= offset for m in messages)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def put(path: Path, content: Any) -> None:
    """Write a file that whoever looks for it finds whole."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.replace(path)


async def obey(app: faust.App, folder: Path) -> None:
    """Do what requests ask for, until the worker stops."""

    async def commit() -> None:
        await app.consumer.commit()

    async def seek(topic: str, partition: int, offset: int) -> None:
        await app.consumer.seek(TP(topic, partition), offset)

    async def seek_wait(topic: str, partition: int, offset: int) -> None:
        await app.consumer.seek_wait({TP(topic, partition): offset})

    async def lag() -> int:
        return sum(app.consumer.lag().values())

    known = {function.__name__: function for function in (commit, seek, seek_wait, lag)}
    while not app.should_stop:
        for request in sorted(folder.glob("*.request")):  # noqa: ASYNC240 - a file of its own for each
            name, arguments = json.loads(request.read_text())
            put(request.with_suffix(".answer"), await known[name](*arguments))
            request.unlink()
        await asyncio.sleep(STEP_S)


def run_worker(broker: str, group: str, topics: Sequence[str], folder: Path, options: Options) -> None:
    """Run until signalled."""
    app = ChunkedApp(
        group,
        broker=f"kafka://{broker}",
        datadir=str(folder / "faust"),
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        broker_max_poll_records=options.poll_records,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=0.5,
        broker_rebalance_timeout=options.rebalance_timeout_s,
        broker_commit_interval=0.5,
        broker_max_poll_interval=86_400.0,
        stream_buffer_maxsize=4,
        stream_wait_empty=True,
    )

    @contextlib.asynccontextmanager
    async def open_recorder() -> AsyncIterator[Recorder]:
        yield Recorder(folder, options.finish_s)

    consume(app, "recorder", topics, open_recorder, ConsumeConfig(batch_messages=options.batch_messages))

    @app.task
    async def listen() -> None:
        await obey(app, folder)

    faust.Worker(app, loglevel="info").execute_from_commandline()


if __name__ == "__main__":
    broker_, group_, topics_, folder_, options_ = json.loads(sys.argv.pop())
    run_worker(broker_, group_, topics_, Path(folder_), Options(**options_))
