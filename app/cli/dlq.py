"""`flywheel dlq`: what could not be routed, and what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.output import AsJson, emit
from app.cli.values import MOST_NUMBER, fail, name_of_person, place, rfc3339, run_on_kafka, shown, time_ms
from app.dlq.audit import NotInAuditLog, announce
from app.dlq.handle import Order, Outcome, Unsettled, handle
from app.dlq.look import Found, find, listing, summary
from app.dlq.survey import DROPPED, REPLAYED, Selection, UnreadableMark
from app.dlq.writer import Fenced, NotExclusive, WriteUncertain
from app.history import HistoryStalled, TopicAbsent
from app.settings import load_settings
from app.topics import AUDIT_EVENTS
from app.wiring import open_database

MOST_LETTERS = 10_000
MOST_TEXT, MOST_BYTES = 4000, 256
PROGRESS_S = 1.0
_EXPECTED = (
    Fenced,
    HistoryStalled,
    NotExclusive,
    NotInAuditLog,
    TopicAbsent,
    UnreadableMark,
    Unsettled,
    WriteUncertain,
)

Reason = Annotated[str | None, typer.Option("--reason", help="Only those of this reason, such as invalid_json.")]
Since = Annotated[str | None, typer.Option("--since", help="Only those written since, RFC 3339.")]
Places = Annotated[
    list[str] | None, typer.Option("--place", help="Only this letter, PARTITION:OFFSET; may be repeated.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, max=MOST_NUMBER, help="At most so many letters in this run.")
]
By = Annotated[str, typer.Option("--by", help="Who asks for it; kept in the audit log and in the topic.")]
NoTransactions = Annotated[
    bool,
    typer.Option(
        "--no-transactions",
        help="For a broker without transactions (librdkafka's mock broker): an interrupted run may then handle the "
        "letters of one batch twice, and so may two runs at a time.",
    ),
]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Dead letters: records that could not be routed. A letter is outstanding until it is replayed or dropped.",
    )
    group.command("ls")(list_letters)
    group.command()(show)
    group.command()(replay)
    group.command()(drop)
    cli.add_typer(group, name="dlq")


def list_letters(
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MOST_LETTERS, help="Show at most so many.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="Also those that were replayed or dropped.")] = False,
    summarise: Annotated[bool, typer.Option("--summary", help="Only how many there are, by reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """Outstanding letters, by partition and offset."""
    settings = load_settings()
    selection = _selection(reason, since, None)
    if summarise:
        counts = run_on_kafka(summary(settings, selection), settings, _EXPECTED)
        rows = [{"reason": shown(name), "letters": count} for name, count in counts.most_common()]
        emit(rows, as_json)
        return
    found, more = run_on_kafka(listing(settings, selection, limit, every=every), settings, _EXPECTED)
    emit([_row(item, with_state=every) if as_json else _line(item, with_state=every) for item in found], as_json)
    if more:
        typer.echo(f"there are more than these {len(found)}: raise --limit, or see --summary", err=True)


def show(
    where: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="As `flywheel dlq ls` shows it.")],
    raw: Annotated[
        Path | None, typer.Option("--raw", dir_okay=False, help="Write the value's bytes to this new file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One letter: its headers and the beginning of its value.

    A letter that could not be decoded holds what came in, which nobody has scrubbed.
    """
    settings = load_settings()
    found = run_on_kafka(find(settings, *place(where)), settings, _EXPECTED)
    if found is None:
        fail(f"there is no letter at {where}: it is gone, or that is a mark; see `flywheel dlq ls`")
    if raw is not None:
        _write_raw(raw, found.letter.value or b"")
    letter = found.letter
    emit(
        _row(found, with_state=True)
        | {"by": shown(found.by), "owner": shown(letter.owner), "key": _bytes_shown(letter.key)}
        | {"headers": {shown(name): _bytes_shown(value) for name, value in letter.headers.items()}}
        | {"value": _bytes_shown(letter.value, MOST_TEXT)},
        as_json,
    )


def replay(
    by: By,
    reason: Reason = None,
    since: Since = None,
    places: Places = None,
    limit: Limit = None,
    no_transactions: NoTransactions = False,
    as_json: AsJson = False,
) -> None:
    """Put outstanding letters back on the input topic, each once.

    Widen what refused them first: whatever still cannot be read comes back as a new letter. A replayed record keeps
    the owner of its first telling, so it is routed even if its id was claimed by that. Interrupted, the command goes
    on when it is run again; a second run at the same time takes over from the first.
    """
    order = Order(REPLAYED, _selection(reason, since, places), name_of_person(by), "", limit, not no_transactions)
    _handle(order, as_json)


def drop(
    by: By,
    comment: Annotated[str, typer.Option("--comment", help="Why; kept in the audit log and in the topic.")],
    reason: Reason = None,
    since: Since = None,
    places: Places = None,
    limit: Limit = None,
    no_transactions: NoTransactions = False,
    as_json: AsJson = False,
) -> None:
    """Mark outstanding letters as handled without replaying them. They stay in the topic until its retention ends."""
    if not comment.strip():
        raise typer.BadParameter("--comment is empty: say why these letters are not wanted")
    order = Order(DROPPED, _selection(reason, since, places), name_of_person(by), comment, limit, not no_transactions)
    _handle(order, as_json)


def _handle(order: Order, as_json: bool) -> None:
    settings = load_settings()
    database = open_database(settings, timeout_s=10.0)

    async def told(event_type: str, body: dict[str, Any]) -> str:
        return await announce(settings, database, event_type, body)

    try:
        work = handle(settings, order, told, _progress(order))
        outcome = run_on_kafka(work, settings, _EXPECTED)
    finally:
        database.close()
    report: dict[str, Any] = {order.verb: outcome.done, "by_reason": dict(outcome.handled)}
    if order.verb == REPLAYED:
        report["not_replayable"] = dict(outcome.left)
        report["examples"] = [shown(example, 400) for example in outcome.examples]
    report["outstanding"] = outcome.outstanding
    if order.selection.places:
        report["not_outstanding"] = outcome.not_outstanding
    emit(report | {"audit_entry": outcome.audit_entry}, as_json)
    if outcome.left:
        typer.echo(
            f"flywheel: {outcome.left.total()} letters cannot be replayed; what to do is told with each example "
            "(widen the bound that refused a message before its backfill)",
            err=True,
        )


def _progress(order: Order) -> Callable[[Outcome], None]:
    """Says how far it is, once a second at most, and at the end."""
    last = 0.0

    def watch(outcome: Outcome) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_S or outcome.done == outcome.planned:
            last = now
            typer.echo(f"{order.verb} {outcome.done} of {outcome.planned}", err=True)

    return watch


def _selection(reason: str | None, since: str | None, places: list[str] | None) -> Selection:
    return Selection(
        reason=reason,
        since_ms=None if since is None else time_ms(since),
        places=frozenset(map(place, places or ())),
    )


def _row(found: Found, *, with_state: bool) -> dict[str, Any]:
    letter = found.letter
    row: dict[str, Any] = {
        "place": letter.place,
        "reason": shown(letter.reason),
        "detail": shown(letter.detail),
        "origin": shown(letter.origin),
        "bytes": letter.size,
        "time": rfc3339(letter.timestamp_ms),
    }
    return row | {"state": found.state} if with_state else row


def _line(found: Found, *, with_state: bool) -> dict[str, Any]:
    """A row as it fits a terminal: the place in the input topic without its name, the time to the second."""
    row = _row(found, with_state=with_state)
    detail = row.pop("detail")
    row["origin"] = row["origin"].removeprefix(f"{AUDIT_EVENTS.name}:")
    row["time"] = row["time"][:19].replace("T", " ")
    return row | {"detail": detail}


def _bytes_shown(value: bytes | None, most: int = 200) -> str | None:
    """Text as text, anything else as the hex of its first bytes; at most `most` characters of it."""
    if value is None:
        return None
    # A character has at most four bytes; the last may be cut.
    head = value[: 4 * most]
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) == len(value):
            cut = value[: min(MOST_BYTES, most)]
            rest = "" if len(cut) == len(value) else f"… ({len(value)} bytes)"
            return f"hex {cut.hex(' ')}{rest}"
        text = head[: error.start].decode()
    return shown(text, most) if len(head) == len(value) else f"{shown(text[:most], most)}… ({len(value)} bytes)"


def _write_raw(path: Path, value: bytes) -> None:
    try:
        # For its owner alone: nobody has scrubbed it.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(value)
    except FileExistsError:
        fail(f"{path} exists already: give --raw a new name")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    typer.echo(f"{len(value)} bytes written to {path}", err=True)
