"""`/dead-letters`: what could not be routed, and replaying or dropping it.

Looking and handling read a whole topic, which may take long: both run in a thread of their own, one at a time, and the
page shows what the last look found and how far a run has come.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Literal

from aiokafka.errors import KafkaError
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.dlq.audit import NotInAuditLog, announce
from app.dlq.handle import Order, Outcome, Unsettled, handle
from app.dlq.look import Found, find, listing, summary
from app.dlq.survey import Selection, UnreadableMark
from app.dlq.writer import Fenced, NotExclusive, WriteUncertain
from app.history import HistoryStalled, TopicAbsent
from app.settings import Settings
from app.web.console.overview import Record
from app.web.console.parts import Console, absent
from app.web.identity import Identity, Right

SHOWN = 50
FRESH_S = 30.0
MOST_VALUE = 20_000
EXPECTED = (
    Fenced, HistoryStalled, KafkaError, NotExclusive, NotInAuditLog, TimeoutError, TopicAbsent, UnreadableMark,
    Unsettled, WriteUncertain,
)  # fmt: skip


class Letter(Record):
    """A dead letter without its value. `place`: PARTITION:OFFSET in the dead-letter topic."""

    place: str
    reason: str
    detail: str
    origin: str
    bytes: int
    time_ms: int
    state: str


class LetterText(Letter):
    """A dead letter with what it holds, as nobody has scrubbed it."""

    value: str | None
    by: str


class Run(Record):
    """A replay or a drop: how far it is, or how it ended."""

    verb: str
    by: str
    planned: int
    done: int
    running: bool
    problem: str | None = None
    left: dict[str, int] = Field(default_factory=dict)
    examples: list[str] = Field(default_factory=list)


class Board(Record):
    """What the last look found, and what is under way. `looked_at`: seconds since 1970."""

    looked_at: float | None
    by_reason: dict[str, int]
    letters: list[Letter]
    more: bool
    looking: bool
    problem: str | None
    run: Run | None


class Handling(BaseModel):
    """Which letters: those at `places`, else those of a reason, else all that are outstanding."""

    model_config = ConfigDict(extra="forbid")

    verb: Literal["replayed", "dropped"]
    reason: str | None = Field(None, max_length=64)
    places: list[str] = Field(default_factory=list, max_length=1000)
    comment: str = Field("", max_length=1000)
    by: str | None = None
    without_transactions: bool = False


class Desk:
    """Looks at dead letters and handles them, one thing at a time."""

    def __init__(self, settings: Settings, open_database: Any) -> None:
        self._settings = settings
        self._open_database = open_database
        self._lock = threading.Lock()
        self._board = Board(looked_at=None, by_reason={}, letters=[], more=False, looking=False, problem=None, run=None)

    def board(self) -> Board:
        """What is known now; begins a new look where the last is older than `FRESH_S`."""
        with self._lock:
            board = self._board
            busy = board.looking or (board.run is not None and board.run.running)
            if not busy and (board.looked_at is None or time.time() - board.looked_at > FRESH_S):
                self._board = board = board.model_copy(update={"looking": True})
                threading.Thread(target=self._look, name="dead-letters", daemon=True).start()
        return board

    def begin(self, order: Order) -> None:
        """Begin to replay or drop; raises HTTPException 409 while something is under way."""
        with self._lock:
            if self._board.run is not None and self._board.run.running:
                raise HTTPException(409, f"{self._board.run.by}'s run is under way: wait for its end")
            run = Run(verb=order.verb, by=order.by, planned=0, done=0, running=True)
            self._board = self._board.model_copy(update={"run": run})
        threading.Thread(target=self._handle, args=(order,), name="dead-letters", daemon=True).start()

    def _look(self) -> None:
        async def look() -> dict[str, Any]:
            counts = await summary(self._settings, Selection())
            found, more = await listing(self._settings, Selection(), SHOWN, every=False)
            return {"by_reason": dict(counts), "letters": [_letter(one) for one in found], "more": more}

        change: dict[str, Any] = {"problem": None}
        try:
            change |= asyncio.run(look())
        except EXPECTED as error:
            change["problem"] = _said(error)
        except Exception as error:  # noqa: BLE001 - the page must not say "looking" for ever
            change["problem"] = type(error).__name__
        with self._lock:
            self._board = self._board.model_copy(update=change | {"looking": False, "looked_at": time.time()})

    def _handle(self, order: Order) -> None:
        async def told(event_type: str, body: dict[str, Any]) -> str:
            return await announce(self._settings, self._open_database(), event_type, body)

        change: dict[str, Any] = {"running": False}
        try:
            outcome = asyncio.run(handle(self._settings, order, told, self._watch))
            change |= _progress(outcome) | {"left": dict(outcome.left), "examples": outcome.examples}
        except EXPECTED as error:
            change["problem"] = _said(error)
        except Exception as error:  # noqa: BLE001 - as above
            change["problem"] = type(error).__name__
        self._change_run(change, looked_at=None)

    def _watch(self, outcome: Outcome) -> None:
        self._change_run(_progress(outcome))

    def _change_run(self, change: dict[str, Any], **board: Any) -> None:
        with self._lock:
            run = self._board.run
            if run is not None:
                self._board = self._board.model_copy(update={"run": run.model_copy(update=change), **board})


def add(app: FastAPI, console: Console) -> None:
    """Add the page, its JSON, single letters, and handling them."""
    may = Depends(console.guard.needs(Right.VIEW, everywhere=True))
    may_handle = Depends(console.guard.needs(Right.OPERATE, everywhere=True))
    desk = Desk(console.settings, lambda: console.state.database)

    async def begin(identity: Identity, asked: Handling) -> str:
        by = identity.acting(asked.by)
        if asked.verb == "dropped" and not asked.comment.strip():
            raise HTTPException(422, "say why these letters are not wanted: the comment is empty")
        places = frozenset(map(_place, asked.places))
        order = Order(
            asked.verb,
            Selection(reason=asked.reason or None, places=places),
            by,
            asked.comment,
            transactional=not asked.without_transactions,
        )
        desk.begin(order)
        return f"{'Replaying' if asked.verb == 'replayed' else 'Dropping'} has begun; this page says how far it is."

    async def letter(partition: int, offset: int) -> LetterText:
        try:
            found = await asyncio.to_thread(asyncio.run, find(console.settings, partition, offset))
        except EXPECTED as error:
            raise HTTPException(503, _said(error)) from None
        if found is None:
            raise absent(f"dead letter at {partition}:{offset}")
        text = None if found.letter.value is None else found.letter.value[:MOST_VALUE].decode("utf-8", "replace")
        return LetterText(**_letter(found).model_dump(), value=text, by=found.by)

    @app.get("/dead-letters", response_class=HTMLResponse)
    async def page(request: Request, identity: Identity = may) -> HTMLResponse:
        """The board as a page."""
        return await console.page(request, identity, "dead_letters.html", {"b": desk.board()})

    @app.get("/dead-letters/{partition}/{offset}", response_class=HTMLResponse)
    async def letter_page(
        request: Request, partition: int, offset: int, identity: Identity = may_handle
    ) -> HTMLResponse:
        """One letter with what it holds: for operators, since nobody has scrubbed it."""
        return await console.page(request, identity, "dead_letter.html", {"l": await letter(partition, offset)})

    @app.get("/api/v1/dead-letters", tags=["dead letters"], dependencies=[may])
    async def board_json() -> Board:
        """What the last look found; asking begins a new one where it is old."""
        return desk.board()

    @app.get("/api/v1/dead-letters/{partition}/{offset}", tags=["dead letters"], dependencies=[may_handle])
    async def letter_json(partition: int, offset: int) -> LetterText:
        """One letter with what it holds."""
        return await letter(partition, offset)

    @app.post("/dead-letters", include_in_schema=False)
    async def handle_form(request: Request, identity: Identity = may_handle) -> Response:
        """Replay or drop, from the page."""
        fields = await console.guard.form(request, identity)
        verb: Literal["replayed", "dropped"] = "dropped" if fields.get("verb") == "dropped" else "replayed"
        asked = Handling(
            verb=verb,
            reason=fields.get("reason", "")[:64] or None,
            places=[place for place in [fields.get("place", "")] if place],
            comment=fields.get("comment", "")[:1000],
            by=fields.get("by"),
            without_transactions="without_transactions" in fields,
        )
        return console.done("/dead-letters", await begin(identity, asked))

    @app.post("/api/v1/dead-letters", tags=["dead letters"], status_code=202)
    async def handle_json(asked: Handling, identity: Identity = may_handle) -> Board:
        """Begin to replay or drop letters; the audit log has it before anything is done."""
        await begin(identity, asked)
        return desk.board()


def _letter(found: Found) -> Letter:
    one = found.letter
    return Letter(
        place=one.place,
        reason=one.reason,
        detail=one.detail,
        origin=one.origin,
        bytes=one.size,
        time_ms=one.timestamp_ms,
        state=found.state,
    )


def _progress(outcome: Outcome) -> dict[str, Any]:
    return {"planned": outcome.planned, "done": outcome.done}


def _place(text: str) -> tuple[int, int]:
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal() and len(text) < 30):
        raise HTTPException(422, f"{text!r} is no place: write PARTITION:OFFSET, such as 0:1200")
    return int(partition), int(offset)


def _said(error: BaseException) -> str:
    if isinstance(error, NotExclusive):
        return "the broker does not keep a letter from being handled twice; accept that, or use Apache Kafka"
    return str(error) or type(error).__name__
