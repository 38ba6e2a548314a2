"""`flywheel backfill`: route history again, or what comes as a file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from agents.routing.counters import Counters
from agents.routing.message import Halt
from agents.routing.pipeline import Pipeline
from agents.routing.publish import PublisherBroken
from app.backfill.file import FileSource
from app.backfill.progress import OUTCOMES, Progress, ProgressFile, ProgressRefused
from app.backfill.run import Pace, run_backfill
from app.backfill.source import Source, SourceUnreadable
from app.backfill.topic import Bound, PartitionAbsent, TopicSource
from app.cli.output import AsJson, emit
from app.cli.values import MOST_NUMBER, a_number, fail, place, run_on_kafka, time_ms
from app.history import HistoryStalled, TopicAbsent
from app.routing import Routing, open_pipeline
from app.settings import Settings, load_settings

PROGRESS_S = 1.0
MOST_PARTITION = 2**31 - 1
_EXPECTED = (Halt, HistoryStalled, PartitionAbsent, ProgressRefused, PublisherBroken, SourceUnreadable, TopicAbsent)
_OFFSET = re.compile(r"[0-9]{1,18}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].*)?")
_CARRIED_BYTES = 7 * 1024 * 1024
"""A longer line is no dead letter's value, so no more of it need be read."""


def add(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command()(backfill)


def backfill(
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="earliest; an offset of all partitions (1200) or of one (0:1200); an RFC 3339 time; or a file of JSON "
            "lines: events, or what the collector's file exporter writes (.gz is read as gzip).",
        ),
    ],
    end: Annotated[
        str | None,
        typer.Option(
            "--to", help="Where to end, before it: an offset, a time, of a file a line. Default: the end as it is now."
        ),
    ] = None,
    partition: Annotated[
        int | None, typer.Option("--partition", min=0, max=MOST_PARTITION, help="Only this partition.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=MOST_NUMBER, help="At most so many messages in this run.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What its progress is kept under. Default: from what is asked for.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=0.1, callback=a_number, help="At most so many records a second."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Route messages of the input topic again, or those of a file, through the same steps as the router.

    What is routed again: a record that the dedup window (routing.dedup_window_s) still knows is recognised by its
    place. The same place again is a redelivery and IS ROUTED AGAIN; another telling of the event, such as a line of a
    file, is a duplicate and is not. What the window has forgotten is routed as new. Filter and sampling decide as
    they did before, if the settings are the same. A worker that has not read the range yet will route it as well: end
    before that with --to.

    A backfill has a name. Interrupted, it goes on when it is run again with the same options; finished, it says so.
    """
    settings = load_settings()
    source = _source(settings, start, end, partition)
    try:
        file = ProgressFile(settings.data_dir / "backfill", name or _default_name(source))
    except ProgressRefused as error:
        raise typer.BadParameter(f"--name {error}") from None
    pace = Pace(settings.routing.batch_messages, limit, rate)

    def opened(counters: Counters) -> AbstractAsyncContextManager[Pipeline]:
        return open_pipeline(settings, Routing(counters))

    work = run_backfill(source, file, opened, pace, _progress())
    progress = run_on_kafka(work, settings, _EXPECTED)
    emit(_report(progress), as_json)
    if isinstance(source, TopicSource) and source.gone:
        typer.echo(f"flywheel: the topic's retention has removed {source.gone} of the messages asked for", err=True)
    if progress.finished_at is not None:
        again = f"backfill {progress.name} is finished; to route it again give another --name"
        typer.echo(f"flywheel: {again}", err=True)
    if progress.unaccounted():
        fail(f"{progress.unaccounted()} records have no outcome: this is a fault of the router, please report it")


def _source(settings: Settings, start: str, end: str | None, partition: int | None) -> Source:
    first = _bound(start)
    if first is None:
        path = Path(start)
        if not _is_file(path):
            forms = "neither earliest, an offset, a time (2025-01-31T12:00:00Z) nor a file"
            raise typer.BadParameter(f"--from {start!r} is {forms}")
        if partition is not None:
            raise typer.BadParameter("--partition is for the topic: a file has no partitions")
        if end is not None and not _OFFSET.fullmatch(end):
            raise typer.BadParameter(f"--to {end!r} is no line of a file: give its number")
        longest = max(settings.routing.max_message_bytes, _CARRIED_BYTES) + 1
        try:
            return FileSource(path, None if end is None else int(end), longest)
        except OSError as error:
            raise typer.BadParameter(f"--from {start!r} cannot be read ({error.strerror}): name another file") from None
    last = Bound("latest") if end is None else _bound(end)
    if last is None:
        raise typer.BadParameter(f"--to {end!r} is neither an offset nor a time (2025-01-31T12:00:00Z)")
    try:
        return TopicSource(settings, first, last, partition)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _bound(text: str) -> Bound | None:
    if text == "earliest":
        return Bound("earliest")
    if _OFFSET.fullmatch(text):
        return Bound("offset", int(text))
    if ":" in text and text.partition(":")[0].isdecimal():
        number, offset = place(text)
        return Bound("offset", offset, number)
    return Bound("time", time_ms(text)) if _TIME.fullmatch(text) else None


def _default_name(source: Source) -> str:
    """The same for the same options, so that the same command goes on."""
    asked = source.describe()
    parts = [str(value)[:40] for value in asked.values() if value is not None]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))[:100]


def _progress() -> Callable[[Progress], None]:
    """Says how far it is, once a second at most."""
    last = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            at = ", ".join(f"{number}:{offset}" for number, offset in sorted(progress.next.items()))
            typer.echo(f"{progress.messages} messages, {progress.counts['in']} records; next {at}", err=True)

    return watch


def _report(progress: Progress) -> dict[str, Any]:
    counts = progress.counts
    outcomes = {name: counts[name] for name in OUTCOMES}
    return {
        "name": progress.name,
        "source": orjson.dumps(progress.source).decode(),
        "finished": progress.finished_at,
        "messages": progress.messages,
        "in": counts["in"],
        **outcomes,
        "accounted": f"{counts['in']} = {' + '.join(str(count) for count in outcomes.values())}"
        if not progress.unaccounted()
        else f"{counts['in']} != {' + '.join(str(count) for count in outcomes.values())}",
        "redelivered": counts["redelivered"],
        "id_conflict": counts["id_conflict"],
        "unclaimed": counts["unclaimed"],
        "by_reason": dict(progress.by_reason),
    }
