"""A file of JSON lines: events, or what the collector's file exporter writes (an OTLP request a line)."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import IO, Any, cast

from agents.routing.message import InboundMessage
from app.backfill.source import Range, Ranges, SourceUnreadable, Step, bounded

FILE_TOPIC = "file:"
"""Begins the name that stands for a file where a topic's would stand; the file's digest follows."""

_DIGEST_CHARS = 16


class FileSource:
    """The lines of a file as messages `file:DIGEST`, partition 0, their offset the number of their line, from 1 on.

    Args:
        path: the file; gzip if its name ends in `.gz`.
        end: the number of the line to end before; None reads all.
        max_line: bytes; of a longer line the rest is passed over, so that it is dead-lettered without its value.
    """

    def __init__(self, path: Path, end: int | None, max_line: int) -> None:
        self._path = path
        self._end = end
        self._max_line = max_line
        with path.open("rb") as file:
            self._digest = hashlib.file_digest(file, "sha256").hexdigest()

    def describe(self) -> dict[str, Any]:
        """What was asked for; the file is known by its content, not by its name."""
        return {"file": self._digest, "to": self._end}

    async def ranges(self) -> Ranges:
        """All lines, or those before the given one."""
        return {0: Range(1, self._end)}

    async def steps(self, ranges: Ranges, messages: int) -> AsyncGenerator[Step, None]:
        """Read the lines that are left; blank ones are passed over. Raises `SourceUnreadable`."""
        for batch in bounded(self._messages(ranges[0]), messages):
            yield Step(batch, {0: batch[-1].offset + 1})

    def _messages(self, lines: Range) -> Iterator[InboundMessage]:
        topic = FILE_TOPIC + self._digest[:_DIGEST_CHARS]
        number = 0
        try:
            with self._open() as file:
                while line := file.readline(self._max_line):
                    number += 1
                    if lines.end is not None and number >= lines.end:
                        return
                    rest = line
                    while not rest.endswith(b"\n") and (rest := file.readline(self._max_line)):
                        pass
                    if number >= lines.next and line.strip():
                        yield InboundMessage(topic, 0, number, line.rstrip(b"\r\n"))
        except (EOFError, zlib.error, OSError) as error:
            raise SourceUnreadable(
                f"{self._path} cannot be read after line {number} ({error}): what came before is routed; mend the file "
                "and give it as a new one"
            ) from error

    def _open(self) -> IO[bytes]:
        if self._path.suffix == ".gz":
            return cast("IO[bytes]", gzip.open(self._path, "rb"))
        return self._path.open("rb")
