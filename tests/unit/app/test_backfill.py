"""Backfill: what is asked for, what a file holds, and that a run goes on exactly where its progress is."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import typer
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from agents.routing.counters import Counters, RouteReport
from agents.routing.message import InboundMessage
from agents.routing.pipeline import Pipeline
from app.backfill.file import FileSource
from app.backfill.progress import OUTCOMES, Progress, ProgressFile, ProgressRefused
from app.backfill.run import Pace, run_backfill
from app.backfill.source import BATCH_BYTES, Range, SourceUnreadable, bounded
from app.backfill.topic import Bound, TopicSource
from app.cli.backfill import _bound, _default_name, _source
from app.settings import Settings

LONGEST = 1000


class Killed(BaseException):
    """As a kill: nothing catches it."""


class FakePipeline:
    """Counts and keeps what it is given; dies in the batches it is told to, before or after routing them."""

    def __init__(self, counters: Counters, routed: list[tuple[str, int]]) -> None:
        self.counters = counters
        self.routed = routed

    async def route(self, messages: Sequence[InboundMessage]) -> RouteReport:
        self.routed += [(message.topic, message.offset) for message in messages]
        report = RouteReport(messages=len(messages), records_in=len(messages))
        report.routed["audit_trail"] = len(messages) - 1
        report.dead_lettered["invalid_json"] = 1
        self.counters.apply(report)
        return report


def opened(routed: list[tuple[str, int]]) -> Any:
    @asynccontextmanager
    async def open_pipeline(counters: Counters) -> AsyncIterator[Pipeline]:
        yield cast("Pipeline", FakePipeline(counters, routed))

    return open_pipeline


def lines_of(path: Path, end: int | None = None, start: int = 1, longest: int = LONGEST) -> list[InboundMessage]:
    async def read() -> list[InboundMessage]:
        source = FileSource(path, end, longest)
        return [m async for step in source.steps({0: Range(start, end)}, 7) for m in step.messages]

    return asyncio.run(read())


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# --- what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("earliest", Bound("earliest")),
        ("0", Bound("offset", 0)),
        ("1200", Bound("offset", 1200)),
        ("3:1200", Bound("offset", 1200, 3)),
        ("1970-01-01T00:00:01.5Z", Bound("time", 1500)),
        ("1970-01-01T01:00:01+01:00", Bound("time", 1000)),
        ("1970-01-02", Bound("time", 86_400_000)),
        ("events.jsonl", None),
        ("./2024-events.jsonl", None),
    ],
)
def test_where_to_begin(text: str, bound: Bound | None) -> None:
    assert _bound(text) == bound


@pytest.mark.parametrize("text", ["3:", "3:x", "2024-13-01", "2024-01-01T99:00:00Z"])
def test_a_beginning_that_is_none_is_named(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=text):
        _bound(text)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "events.jsonl", b"{}\n")
    with pytest.raises(typer.BadParameter, match="neither earliest"):
        _source(Settings(), "no-such-file", None, None)
    with pytest.raises(typer.BadParameter, match="no partitions"):
        _source(Settings(), str(file), None, 3)
    with pytest.raises(typer.BadParameter, match="no line"):
        _source(Settings(), str(file), "2025-01-31", None)
    with pytest.raises(typer.BadParameter, match="partitions 1 and 2"):
        _source(Settings(), "1:5", "2:9", None)
    with pytest.raises(typer.BadParameter, match="partitions 1 and 3"):
        _source(Settings(), "1:5", None, 3)


def test_the_same_options_have_the_same_name_and_others_another(tmp_path: Path) -> None:
    file = write(tmp_path / "events.jsonl", b"{}\n")
    other = write(tmp_path / "others.jsonl", b"{ }\n")
    asked: list[tuple[str, str | None, int | None]] = [
        ("earliest", None, None),
        ("earliest", None, 1),
        ("5", None, None),
        ("1:5", None, None),
        ("1:5", "1:9", None),
        ("2025-01-31", None, None),
        (str(file), None, None),
        (str(file), "7", None),
        (str(other), None, None),
    ]
    names = [_default_name(_source(Settings(), *each)) for each in asked]
    assert names == [_default_name(_source(Settings(), *each)) for each in asked]
    assert len(set(names)) == len(names)
    for name in names:
        ProgressFile(tmp_path, name)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz"])
def test_lines_become_messages(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b'{"a": 1}\n\n  \r\n{"b": 2}\r\nlast')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = lines_of(path)
    assert [(m.offset, m.value) for m in found] == [(1, b'{"a": 1}'), (4, b'{"b": 2}'), (5, b"last")]
    assert {(m.topic, m.partition, m.key) for m in found} == {(f"file:{digest[:16]}", 0, None)}
    assert found[1].owner(3) == f"file:{digest[:16]}:0:4:3"
    assert [m.offset for m in lines_of(path, end=5, start=2)] == [4]


def test_of_a_long_line_enough_is_read_to_refuse_it(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", b"a" * 999 + b"\n" + b"b" * 5000 + b"\nnext\n" + b"c" * 2500)
    found = lines_of(path)
    assert [(m.offset, len(m.value or b""), (m.value or b"")[:1]) for m in found] == [
        (1, 999, b"a"),
        (2, LONGEST, b"b"),
        (3, 4, b"n"),
        (4, LONGEST, b"c"),
    ]


def test_a_damaged_file_is_read_to_where_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"n": %d}\n' % (n * 7919) for n in range(20_000)))
    path.write_bytes(whole[: len(whole) // 2])
    routed: list[tuple[str, int]] = []
    file = ProgressFile(tmp_path, "damaged")
    with pytest.raises(SourceUnreadable, match=r"cannot be read after line [1-9]"):
        asyncio.run(
            run_backfill(FileSource(path, None, LONGEST), file, opened(routed), Pace(batch_messages=100), no_watch)
        )
    progress = file.load(FileSource(path, None, LONGEST).describe())
    assert progress is not None
    assert progress.finished_at is None
    assert progress.messages == len(routed) > 1000
    assert progress.next[0] == routed[-1][1] + 1
    with pytest.raises(SourceUnreadable, match="after line 0"):
        lines_of(write_plain(tmp_path / "no.gz", b"no gzip"))


def write_plain(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def no_watch(progress: Progress) -> None:
    """Nobody watches."""


@given(st.lists(st.integers(0, BATCH_BYTES // 2), max_size=12), st.integers(1, 5))
def test_batches_are_bounded(sizes: list[int], most: int) -> None:
    messages = [InboundMessage("t", 0, n, b"x" * size) for n, size in enumerate(sizes)]
    batches = list(bounded(messages, most))
    assert [m for batch in batches for m in batch] == messages
    for batch in batches:
        assert 1 <= len(batch) <= most
        assert sum(len(m.value or b"") for m in batch[:-1]) < BATCH_BYTES


# --- progress ----------------------------------------------------------------------------------------------------


def test_progress_comes_back_as_it_was(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "new", "name")
    progress = Progress.begin("name", {"from": "earliest"}, {0: Range(5, 9), 3: Range(1, None)})
    with file.held():
        file.save(progress)
        progress.advance(2, {0: 7}, _snapshot(0), _snapshot(4))
        file.save(progress)
    found = file.load({"from": "earliest"})
    assert found == progress
    assert found.ranges == {0: Range(7, 9), 3: Range(1, None)}
    assert (found.counts["in"], found.counts["routed"], found.by_reason) == (4, 3, {"invalid_json": 1})
    assert found.unaccounted() == 0
    assert [path.name for path in sorted(file.path.parent.iterdir())] == ["name.json", "name.lock"]
    with pytest.raises(ProgressRefused, match="another --name"):
        file.load({"from": "offset 5"})


def _snapshot(records: int) -> dict[str, Any]:
    counters = Counters()
    if records:
        report = RouteReport(records_in=records)
        report.routed["audit_trail"] = records - 1
        report.dead_lettered["invalid_json"] = 1
        counters.apply(report)
    return counters.snapshot()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "x" * 101, "a b"])
def test_a_name_is_a_plain_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProgressRefused, match="no name"):
        ProgressFile(tmp_path, name)


def test_damaged_progress_is_named(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path, "name")
    file.path.write_bytes(b'{"name": ')
    with pytest.raises(ProgressRefused, match="damaged"):
        file.load({})


def test_one_run_at_a_time_has_a_name(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from app.backfill.progress import ProgressFile\n"
        "with ProgressFile(pathlib.Path(sys.argv[1]), 'name').held(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ProgressRefused, match="running already"), ProgressFile(tmp_path, "name").held():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with ProgressFile(tmp_path, "name").held():
        pass


# --- runs --------------------------------------------------------------------------------------------------------


@limits(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lines=st.integers(0, 60),
    batch=st.integers(1, 9),
    runs=st.lists(st.tuples(st.sampled_from(["route", "save", "limit"]), st.integers(1, 6)), max_size=6),
)
def test_every_line_is_routed_wherever_runs_are_killed(
    tmp_path_factory: pytest.TempPathFactory, lines: int, batch: int, runs: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    path = write(folder / "events.jsonl", b"".join(b'{"n": %d}\n' % n for n in range(lines)))
    source, file = FileSource(path, None, LONGEST), ProgressFile(folder, "name")
    routed: list[tuple[str, int]] = []
    repeated = 0
    for how, count in runs:
        limit = count if how == "limit" else None
        dying = _dying(file, how, count)
        try:
            asyncio.run(run_backfill(source, dying, opened(routed), Pace(batch, limit), no_watch))
        except Killed:
            repeated += batch
    progress = asyncio.run(run_backfill(source, file, opened(routed), Pace(batch), no_watch))
    assert progress.finished_at is not None
    counts = Counter(offset for _, offset in routed)
    assert set(counts) == set(range(1, lines + 1))
    # Only the batch in hand at a kill is routed again.
    assert sum(counts.values()) <= lines + repeated
    assert progress.messages == progress.counts["in"] == lines
    assert progress.unaccounted() == 0
    before = len(routed)
    again = asyncio.run(run_backfill(source, file, opened(routed), Pace(batch), no_watch))
    assert (again, len(routed)) == (progress, before)


def _dying(file: ProgressFile, how: str, count: int) -> ProgressFile:
    """The file, in a process that is killed before, or after, its so-manieth save."""

    class Dying(ProgressFile):
        saves = 0

        def save(self, progress: Progress) -> None:
            self.saves += 1
            if how == "route" and self.saves == count:
                raise Killed
            super().save(progress)
            if how == "save" and self.saves == count:
                raise Killed

    return Dying(file.path.parent, file.name)


def test_a_rate_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", b"{}\n" * 30)
    routed: list[tuple[str, int]] = []
    times: list[float] = []

    async def run() -> None:
        clock = asyncio.get_running_loop().time
        pace = Pace(batch_messages=100, rate=100.0)
        source, file = FileSource(path, None, LONGEST), ProgressFile(tmp_path, "name")
        begun = clock()
        await run_backfill(source, file, opened(routed), pace, lambda progress: None)
        times.append(clock() - begun)

    asyncio.run(run())
    assert times[0] >= 0.3
    assert len(routed) == 30


def test_a_backfill_goes_on_only_with_what_it_began(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", b"{}\n" * 3)
    file = ProgressFile(tmp_path, "name")
    asyncio.run(run_backfill(FileSource(path, None, LONGEST), file, opened([]), Pace(1, limit=1), no_watch))
    write(path, b"{}\n" * 4)
    with pytest.raises(ProgressRefused, match="another --name"):
        asyncio.run(run_backfill(FileSource(path, None, LONGEST), file, opened([]), Pace(), no_watch))


def test_the_outcomes_are_the_routers() -> None:
    snapshot = Counters().snapshot()
    assert all(name in snapshot for name in ("in", *OUTCOMES))
    assert orjson.dumps(TopicSource(Settings(), Bound("earliest"), Bound("latest")).describe())
