"""What people write on the command line, and what may be shown on their terminal."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import typer
from aiokafka.errors import KafkaError

from app.cli.output import complain, printable
from app.connections import kafka_refusal
from app.settings import Settings

T = TypeVar("T")

INTERRUPTED = 130
MOST_ROWS = 100_000
"""That a command lists."""
MOST_NUMBER = 2**63 - 1
"""A larger one is no number to a database, nor in the audit log's JSON."""
_PLACE = re.compile(r"([0-9]{1,9}):([0-9]{1,18})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def place(text: str) -> tuple[int, int]:
    """`PARTITION:OFFSET` as numbers."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no place: write PARTITION:OFFSET, such as 0:1200")
    return int(found[1]), int(found[2])


def moment(text: str) -> datetime:
    """An RFC 3339 time, in UTC; one without an offset is UTC."""
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no time: write RFC 3339, such as 2025-01-31T12:00:00Z") from None


def time_ms(text: str) -> int:
    """An RFC 3339 time in milliseconds since the epoch; one without an offset is UTC."""
    return max(0, int(moment(text).timestamp() * 1000))


def rfc3339(ms: int) -> str:
    """Milliseconds since the epoch in RFC 3339, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def name_of_person(text: str) -> str:
    """Who acts, as the audit log keeps it."""
    if not 1 <= len(text.strip()) <= 256 or _CONTROL.search(text):
        raise typer.BadParameter(f"{text!r} names nobody: give 1 to 256 characters, none of them a control character")
    return text.strip()


def reason_given(text: str) -> str:
    """Why somebody acts, as the audit log keeps it."""
    if not 1 <= len(text.strip()) <= 1000 or _CONTROL.search(text):
        raise typer.BadParameter("say why in 1 to 1000 characters on one line")
    return text.strip()


def a_number(value: float | None) -> float | None:
    """Bounds let through what is not a number."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is no number: give one")
    return value


def shown(text: str, most: int = 200) -> str:
    """Text of others, safe and short: what is no printable character but a line's end or a tab is escaped."""
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return printable(cut)


def fail(message: str) -> NoReturn:
    """End the command with status 1 and a line on standard error."""
    complain(message)
    raise typer.Exit(1)


def run_on_kafka(work: Coroutine[Any, Any, T], settings: Settings, expected: tuple[type[Exception], ...]) -> T:
    """Run a command's coroutine; `expected` errors, a broker that is away and Ctrl-C are a line and an exit status."""
    # What it logs while a broker is away or a producer is fenced, the command says in one line at its end.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(work)
    except expected as error:
        fail(str(error))
    except (KafkaError, TimeoutError, OSError) as error:
        if (refusal := asyncio.run(kafka_refusal(settings))) is not None:
            fail(refusal)
        bootstrap = settings.kafka.bootstrap_servers
        fail(f"Kafka at {bootstrap}: {type(error).__name__}: {error}. Is it running? Run the command again; it goes on")
    except KeyboardInterrupt:
        typer.echo("flywheel: interrupted; what was acknowledged stands: run the command again, it goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
