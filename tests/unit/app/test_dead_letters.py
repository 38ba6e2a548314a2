"""Dead letters: what they say, which are outstanding, and what an operator does with them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from dead_letter_desk import DEAD, INPUT, MB, PARTITIONS, Broker, Desk, contents, desk_on, known_input, replays
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from agents.routing.dead_letters import MARK, MARK_BY, OWNER, dead_letter, is_mark
from agents.routing.message import InboundMessage, Reason, Rejected
from app.dlq import handle as handling
from app.dlq import look
from app.dlq.audit import NotInAuditLog, announce
from app.dlq.handle import handle
from app.dlq.letters import Letter
from app.dlq.survey import DROPPED, OUTSTANDING, REPLAYED, OffsetSet, Selection, UnreadableMark, read_mark
from app.history import TopicAbsent, open_reader, partitions_of
from app.settings import Settings
from app.store import Database
from app.store.tables import outbox

# --- what a letter says ------------------------------------------------------------------------------------------


def rejected(value: bytes | None, message_value: bytes | None = b"whole", index: int = 0) -> Rejected:
    headers = {"content-type": b"application/json", "traceparent": b"00-1"}
    message = InboundMessage(INPUT, 2, 17, message_value, b"key", headers)
    return Rejected(message, index, Reason.INVALID_JSON, "at byte 3", value)


def letter_of(dead: Rejected, **changes: bytes) -> Letter:
    out = dead_letter(dead, MB)
    headers = dict(out.headers) | {name.replace("_", "-"): value for name, value in changes.items()}
    return Letter(1, 5, 1_700_000_000_000, out.key, out.value, headers, len(out.value) + len(out.key or b""))


def test_a_letter_says_where_it_comes_from() -> None:
    letter = letter_of(rejected(b"part", index=3))
    assert (letter.place, letter.reason, letter.detail) == ("1:5", "invalid_json", "at byte 3")
    assert letter.origin == letter.owner == f"{INPUT}:2:17:3"
    assert (letter.origin_partition, letter.obstacle, letter.size) == (2, None, 7)


def test_a_replayed_letter_keeps_its_first_owner() -> None:
    first = f"{INPUT}:0:3:4"
    dead = rejected(b"part", index=2)
    dead.message.headers = {OWNER: first.encode()}
    letter = letter_of(dead)
    assert letter.owner == f"{INPUT}:0:3:6"
    assert letter.origin == f"{INPUT}:2:17:2"


@pytest.mark.parametrize(
    ("dead", "changes", "obstacle", "remedy"),
    [
        (rejected(None), {}, "left out (not carried)", "backfill --from 2:17 --to 2:18"),
        (rejected(b"x" * (MB + 1)), {}, "left out (1048577 bytes)", "backfill --from 2:17 --to 2:18"),
        (rejected(b"x"), {OWNER: b""}, "names no owner", "drop it"),
        (rejected(b"x"), {OWNER: b"policy-evaluations:0:1:0"}, "did not come in", "drop it"),
        (
            rejected(None),
            {"flywheel_origin_topic": b"file:ab12", "flywheel_origin_offset": b"7"},
            "left out",
            "line 7 of the file file:ab12",
        ),
    ],
)
def test_what_cannot_be_replayed_and_what_to_do(
    dead: Rejected, changes: dict[str, bytes], obstacle: str, remedy: str
) -> None:
    letter = letter_of(dead, **changes)
    assert letter.obstacle is not None
    assert obstacle in letter.obstacle
    assert remedy in letter.remedy


def test_what_a_file_brought_can_be_replayed() -> None:
    assert letter_of(rejected(b"x"), **{OWNER: b"file:0123456789abcdef:0:7:0"}).obstacle is None


def test_a_mark_is_no_letter() -> None:
    assert is_mark([(MARK, b"replayed"), (MARK_BY, b"me")])
    assert is_mark({MARK: b"replayed"})
    assert not is_mark(dead_letter(rejected(b"x"), MB).headers)
    assert not is_mark(())


@dataclass
class FakeRecord:
    value: bytes | None
    partition: int = 0
    offset: int = 10
    headers: tuple[tuple[str, bytes], ...] = ((MARK, b"dropped"), (MARK_BY, b"me"))


def test_marks_are_read_or_refused() -> None:
    mark = read_mark(FakeRecord(b'{"offsets": [0, 9]}'))  # type: ignore[arg-type]
    assert (mark.kind, mark.by, mark.offsets) == (DROPPED, "me", [0, 9])
    for value in (
        None,
        b"",
        b"[]",
        b'{"offsets": 3}',
        b'{"offsets": ["1"]}',
        b'{"offsets": [10]}',
        b'{"offsets":[-1]}',
    ):
        with pytest.raises(UnreadableMark, match="0:10"):
            read_mark(FakeRecord(value))  # type: ignore[arg-type]


@limits(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 18) | st.integers(0, 70)), max_size=80))
def test_offset_sets_are_sets(changes: list[tuple[bool, int]]) -> None:
    offsets, truth = OffsetSet(), set[int]()
    for added, offset in changes:
        (offsets.add if added else offsets.discard)(offset)
        (truth.add if added else truth.discard)(offset)
    assert len(offsets) == len(truth)
    assert offsets.span() == ((min(truth), max(truth) + 1) if truth else None)
    for _, offset in changes:
        assert (offset in offsets) == (offset in truth)
        assert (offset + 1 in offsets) == (offset + 1 in truth)


# --- on a broker -------------------------------------------------------------------------------------------------


@pytest.fixture
async def desk(broker: Broker, unique: Callable[[str], str]) -> Desk:
    return await desk_on(broker, unique("reason"))


async def test_a_replay_puts_back_what_came_in_once(desk: Desk) -> None:
    before = await known_input(desk)
    places = await desk.put(10, omitted=2)
    assert await desk.outstanding() == 10
    outcome = await desk.run(desk.order())

    assert outcome.handled == {desk.reason: 8}
    assert outcome.left == {desk.reason: 2}
    assert outcome.outstanding == 2
    # Placed as partition 0..3 in turn, so of the last two letters one is in partition 0 and one in partition 1.
    assert {example.partition(": ")[0] for example in outcome.examples} == set(places[8:])
    assert all("its value was left out" in example for example in outcome.examples)
    found = {dict(record.headers)[OWNER].decode(): record for record in await replays(desk, before)}
    assert set(found) == {f"{INPUT}:{number % PARTITIONS}:{number}:0" for number in range(8)}
    for number in range(8):
        record = found[f"{INPUT}:{number % PARTITIONS}:{number}:0"]
        assert record.partition == number % PARTITIONS
        assert record.key == b"k%d" % number
        assert record.value == b"v%d " % number + b"x" * 10
        assert dict(record.headers) == {
            "content-type": b"application/json",
            OWNER: f"{INPUT}:{number % PARTITIONS}:{number}:0".encode(),
        }

    assert desk.announced == [
        (
            "dead_letters_replayed",
            {
                "context": {
                    "by": "tester",
                    "comment": "because",
                    "letters": 8,
                    "by_reason": {desk.reason: 8},
                    "selection": {"reason": desk.reason, "since_ms": None, "places": [], "limit": None},
                }
            },
        )
    ]
    assert await desk.states() == {REPLAYED: 8, OUTSTANDING: 2}
    again = await desk.run(desk.order())
    assert (again.planned, again.done, again.audit_entry, len(desk.announced)) == (0, 0, None, 1)
    assert len(await replays(desk, before)) == 8


async def test_marks_lie_in_their_letters_partitions(desk: Desk) -> None:
    places = await desk.put(6)
    await desk.run(desk.order(DROPPED))
    marks = [
        (record.partition, orjson.loads(record.value or b""), dict(record.headers))
        for record in await contents(desk.settings, DEAD)
        if is_mark(record.headers) and b'"because"' in (record.value or b"")
    ]
    mine = [mark for mark in marks if any(f"{mark[0]}:{offset}" in places for offset in mark[1]["offsets"])]
    assert {f"{partition}:{offset}" for partition, value, _ in mine for offset in value["offsets"]} == set(places)
    for _, value, headers in mine:
        assert (value["audit_entry"], value["comment"]) == ("entry-1", "because")
        assert headers == {MARK: b"dropped", MARK_BY: b"tester"}


async def test_what_is_dropped_is_not_replayed(desk: Desk) -> None:
    before = await known_input(desk)
    await desk.put(5, omitted=3)
    outcome = await desk.run(desk.order(DROPPED))
    assert (outcome.done, outcome.outstanding, dict(outcome.left)) == (5, 0, {})
    assert desk.announced[0][0] == "dead_letters_dropped"
    assert (await desk.run(desk.order())).planned == 0
    assert await desk.states() == {DROPPED: 5}
    assert await replays(desk, before) == []


async def test_a_limit_and_places_choose(desk: Desk) -> None:
    before = await known_input(desk)
    places = await desk.put(12)
    first = await desk.run(desk.order(limit=5))
    assert (first.planned, first.done, first.outstanding) == (5, 5, 7)
    await contents(desk.settings, DEAD)  # what a transaction wrote becomes visible some time after it ended
    found, more = await look.listing(desk.settings, Selection(reason=desk.reason), 3, every=False)
    assert more
    left = (await look.listing(desk.settings, Selection(reason=desk.reason), 100, every=False))[0]
    assert [item.letter.place for item in found] == [item.letter.place for item in left[:3]]
    handled = next(place for place in places if place not in {item.letter.place for item in left})
    asked = frozenset(tuple(map(int, place.split(":"))) for place in (left[4].letter.place, handled))
    chosen = await desk.run(desk.order(places=asked))
    assert chosen.handled.total() == 1
    assert chosen.not_outstanding == [handled]
    assert desk.announced[-1][1]["context"]["selection"]["places"] == sorted(
        [left[4].letter.place, handled], key=lambda place: tuple(map(int, place.split(":")))
    )
    rest = await desk.run(desk.order())
    assert rest.done == 6
    owners = Counter(dict(record.headers)[OWNER] for record in await replays(desk, before))
    assert len(owners) == 12
    assert set(owners.values()) == {1}


async def test_since_a_time(desk: Desk) -> None:
    await desk.put(3)
    last = (await look.listing(desk.settings, Selection(reason=desk.reason), 10, every=False))[0]
    newest = max(item.letter.timestamp_ms for item in last)
    await asyncio.sleep(0.01)
    await desk.put(2)
    outcome = await desk.run(desk.order(DROPPED, since_ms=newest + 1))
    assert outcome.done == 2
    assert await desk.outstanding() == 3


async def test_one_letter_is_found_with_what_became_of_it(desk: Desk) -> None:
    places = await desk.put(2)
    partition, offset = map(int, places[0].split(":"))
    found = await look.find(desk.settings, partition, offset)
    assert found is not None
    assert (found.state, found.by, found.letter.value) == (OUTSTANDING, "", b"v0 " + b"x" * 10)
    await desk.run(desk.order())
    found = await look.find(desk.settings, partition, offset)
    assert found is not None
    assert (found.state, found.by) == (REPLAYED, "tester")
    assert await look.find(desk.settings, partition, 10**9) is None
    assert await look.find(desk.settings, 99, 0) is None
    marks = [r for r in await contents(desk.settings, DEAD) if is_mark(r.headers)]
    assert await look.find(desk.settings, marks[0].partition, marks[0].offset) is None


async def test_batches_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.put(9, size=1000)
    sizes: list[int] = []
    monkeypatch.setattr(handling, "BATCH_LETTERS", 4)
    monkeypatch.setattr(handling, "BATCH_BYTES", 2500)

    async def told(event_type: str, body: dict[str, Any]) -> str:
        return "entry"

    await handle(desk.settings, desk.order(), told, lambda outcome: sizes.append(outcome.done))
    assert sizes == [2, 4, 6, 8, 9]
    assert await desk.states() == {REPLAYED: 9}


async def test_nothing_takes_effect_before_the_audit_log_has_it(desk: Desk) -> None:
    before = await known_input(desk)
    await desk.put(3)

    async def refused(event_type: str, body: dict[str, Any]) -> str:
        raise NotInAuditLog("away")

    with pytest.raises(NotInAuditLog):
        await handle(desk.settings, desk.order(), refused, lambda outcome: None)
    assert await desk.states() == {OUTSTANDING: 3}
    assert await replays(desk, before) == []


async def test_a_topic_that_is_not_there(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_reader(desk.settings) as reader:
        with pytest.raises(TopicAbsent, match="topics create"):
            await partitions_of(reader, f"no-{desk.reason}")


# --- the audit log -----------------------------------------------------------------------------------------------


async def test_an_entry_that_the_audit_engine_does_not_take_is_withdrawn(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    settings = Settings.model_validate({"audit_engine": {"url": "http://127.0.0.1:1", "token": "t"}})
    with pytest.raises(NotInAuditLog, match=r"127\.0\.0\.1:1 .* nothing was done"):
        await announce(settings, database, "dead_letters_dropped", {"by": "me"}, within_s=0.5)
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one() == 0
    database.close()
