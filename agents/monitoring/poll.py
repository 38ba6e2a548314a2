"""Polling: every item of a source is counted once, however often it is listed and however often the worker restarts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from agents.monitoring.fetch import Fetch, FetchFailed, Page
from agents.monitoring.metrics import FlywheelMetrics

MAX_PAGES = 200
"""Pages taken in one poll; what is left comes with the next."""

_LOG = logging.getLogger(__name__)

Item = TypeVar("Item", bound=BaseModel)


class PositionUnreadable(Exception):
    """The saved position is none. Counting from the start would count twice, so nothing is counted."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the saved position {text[:100]!r} is none; remove it to count from the start")


class CursorStore(Protocol):
    """Keeps one text for each name over restarts."""

    async def load(self, name: str) -> str | None:
        """The text last saved under a name; None when there is none."""

    async def save(self, name: str, cursor: str) -> None:
        """Save a text, durably."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a source has been counted.

    `cursor` is the service's own. Where it has none, `listed` holds the ids of its last list: an item that is listed
    again is known by them, and one that left a list of recent items does not come back.
    """

    cursor: str | None = None
    listed: tuple[str, ...] = ()

    def dump(self) -> str:
        """As text, for a CursorStore."""
        return json.dumps({"cursor": self.cursor, "listed": list(self.listed)}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str | None) -> Position:
        """From `dump`. Raises PositionUnreadable."""
        if text is None:
            return cls()
        try:
            fields = json.loads(text)
            cursor, listed = fields["cursor"], fields["listed"]
            sound = (cursor is None or isinstance(cursor, str)) and all(isinstance(item, str) for item in listed)
        except (ValueError, TypeError, KeyError) as error:
            raise PositionUnreadable(text) from error
        if not sound:
            raise PositionUnreadable(text)
        return cls(cursor, tuple(listed))


class SourcePoller(Generic[Item]):
    """Polls one source and counts its new items.

    A position is saved after its items were counted: a worker that dies in between counts them again, but its own
    counters died with it. While the store cannot save, counting goes on from the position in memory.
    """

    def __init__(
        self,
        name: str,
        fetch: Fetch,
        item_type: type[Item],
        count: Callable[[Item], None],
        cursors: CursorStore,
        metrics: FlywheelMetrics,
    ) -> None:
        self.name = name
        self._fetch = fetch
        self._item_type = item_type
        self._count = count
        self._cursors = cursors
        self._metrics = metrics
        self._position: Position | None = None
        self._saved: Position | None = None

    async def poll(self) -> int:
        """Count what is new and return how much it was.

        Raises FetchFailed (also where a service that told cursors tells none), PositionUnreadable, the store's errors.
        """
        if self._position is None:
            self._position = self._saved = Position.parse(await self._cursors.load(self.name))
        counted = 0
        for _ in range(MAX_PAGES):
            before = self._position
            page = await self._fetch(before.cursor)
            if page.cursor is None and before.cursor is not None:
                # A proxy's or a half dead service's list. Believed, it makes us forget the position and count anew.
                raise FetchFailed(
                    f"{self.name} were listed without a cursor, which the service told before; if another service has "
                    f"taken its place, remove the position {self.name!r} to count from the start"
                )
            counted += self._take(page)
            if self._position != self._saved:
                await self._cursors.save(self.name, self._position.dump())
                self._saved = self._position
            if page.cursor is None or page.cursor == before.cursor:
                break
        return counted

    def _take(self, page: Page) -> int:
        """Count a page's new items and step forward, with no await in between."""
        known = set(self._position.listed) if self._position else set()
        listed: list[str] = []
        counted = 0
        for raw in page.items:
            item_id = _id(raw)
            if item_id is None:
                self._metrics.count_malformed(self.name)
                continue
            listed.append(item_id)
            if item_id not in known:
                known.add(item_id)
                counted += self._count_one(raw)
        self._position = Position(page.cursor) if page.cursor is not None else Position(None, tuple(listed))
        return counted

    def _count_one(self, raw: Any) -> int:
        try:
            item = self._item_type.model_validate(raw, strict=True)
        except ValidationError as error:
            fields = sorted({".".join(str(part) for part in problem["loc"]) for problem in error.errors()})
            _LOG.warning("an item of %s is malformed and not counted: %s", self.name, ", ".join(fields))
            self._metrics.count_malformed(self.name)
            return 0
        self._count(item)
        return 1


def _id(raw: Any) -> str | None:
    found = raw.get("id") if isinstance(raw, dict) else None
    return found if isinstance(found, str) and found else None
