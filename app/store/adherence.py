"""Adherence of each model and domain, estimated from its evaluations; estimate and positions are one transaction.

An exponentially weighted mean in which an event that stands for n evaluations (1 / `sample_rate`) weighs as n: after
n more evaluations what was before counts 2^(-n / half_life). Both sums fade alike, so the mean has no bias at its
start (as in Kingma and Ba, "Adam", ICLR 2015, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, utc_now
from app.store.tables import adherence, adherence_history, adherence_positions

Partition = tuple[str, int]

HISTORY_DAYS = {1: 1, 10: 8, 60: 366}
"""How many days the estimate of each minute, ten minutes and hour is kept for whoever looks back."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One evaluation as a topic told it. `stands_for`: how many evaluations it represents, at least 1.

    `model_version` is empty where it names none. `arrived_at` is the router's stamp and `told_at` the event's own time,
    both in the form of `utc_now`, and empty where it is not known.
    """

    topic: str
    partition: int
    offset: int
    model_id: str
    domain: str
    adherent: bool
    stands_for: float
    model_version: str = ""
    arrived_at: str = ""
    told_at: str = ""


@dataclass(frozen=True, slots=True)
class Adherence:
    """The estimate of one model and domain. `mean`: 0..1. `weight`: of the evaluations that still count."""

    model_id: str
    domain: str
    mean: float
    weight: float
    evaluations: int


def observe(connection: Connection, observations: Sequence[Observation], half_life: float) -> int:
    """Take observations in, each position once however often it is told; returns how many were new.

    `half_life`: in evaluations.
    """
    fresh = advance(connection, observations)
    take(connection, fresh, half_life)
    return len(fresh)


def advance(connection: Connection, observations: Sequence[Observation]) -> list[Observation]:
    """Move the positions past the observations, to the end of the transaction; returns those that are new."""
    return list(_advance(connection, observations))


def take(connection: Connection, fresh: Sequence[Observation], half_life: float) -> None:
    """Take in observations that are new."""
    by_key: dict[tuple[str, str], list[Observation]] = {}
    for one in fresh:
        by_key.setdefault((one.model_id, one.domain), []).append(one)
    # In one order for all: two workers would otherwise wait for each other.
    for (model_id, domain), group in sorted(by_key.items()):
        _take(connection, model_id, domain, group, half_life)


def read(connection: Connection) -> dict[tuple[str, str], Adherence]:
    """All estimates, by model and domain."""
    rows = connection.execute(sa.select(adherence).where(adherence.c.weight > 0))
    return {
        (row.model_id, row.domain): Adherence(
            row.model_id, row.domain, row.adherent / row.weight, row.weight, row.evaluations
        )
        for row in rows
    }


def fade_in(adherent: float, weight: float, group: Sequence[Observation], half_life: float) -> tuple[float, float]:
    """Both sums of the mean after a group of observations, in their order."""
    for one in group:
        kept = 0.5 ** (one.stands_for / half_life)
        # The sum of the geometric series of its n evaluations, each fading by 2^(-1 / half_life).
        gained = (1.0 - kept) / (1.0 - 0.5 ** (1.0 / half_life))
        adherent = adherent * kept + gained * one.adherent
        weight = weight * kept + gained
    return adherent, weight


def over_time(connection: Connection, since: str, span: int = 1) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """(minute, mean) by model and domain from the minute `since` on; `span`: 1, 10 or 60 minutes a point."""
    columns = adherence_history.c
    rows = connection.execute(
        sa.select(columns.model_id, columns.domain, columns.minute, columns.mean)
        .where(columns.span == span, columns.minute >= since)
        .order_by(columns.minute),
    )
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for model_id, domain, minute, mean in rows:
        found.setdefault((model_id, domain), []).append((minute, mean))
    return found


def restart(connection: Connection, model_id: str) -> None:
    """Begin anew for a model: another version of it answers from now on."""
    connection.execute(sa.delete(adherence).where(adherence.c.model_id == model_id))


def _advance(connection: Connection, observations: Sequence[Observation]) -> Iterable[Observation]:
    last: dict[Partition, int] = {}
    for one in observations:
        place = (one.topic, one.partition)
        last[place] = max(last.get(place, -1), one.offset)
    known = _positions(connection, sorted(last))
    for (topic, partition), offset in last.items():
        if offset >= known[topic, partition]:
            connection.execute(
                sa.update(adherence_positions)
                .where(adherence_positions.c.topic == topic, adherence_positions.c.partition == partition)
                .values(next_offset=offset + 1),
            )
    return [one for one in observations if one.offset >= known[one.topic, one.partition]]


def _positions(connection: Connection, places: Sequence[Partition]) -> Mapping[Partition, int]:
    """The next offset of each, its row held to the end of the transaction."""
    table = adherence_positions.c
    rows = [{"topic": topic, "partition": partition, "next_offset": 0} for topic, partition in places]
    insert_new(connection, adherence_positions, rows, ["topic", "partition"])
    found = {}
    for topic, partition in places:
        query = sa.select(table.next_offset).where(table.topic == topic, table.partition == partition)
        found[topic, partition] = int(connection.execute(query.with_for_update()).scalar_one())
    return found


def _take(connection: Connection, model_id: str, domain: str, group: Sequence[Observation], half_life: float) -> None:
    key = (adherence.c.model_id == model_id, adherence.c.domain == domain)
    empty = {"adherent": 0.0, "weight": 0.0, "evaluations": 0, "updated_at": utc_now()}
    insert_new(connection, adherence, [{"model_id": model_id, "domain": domain, **empty}], ["model_id", "domain"])
    row = connection.execute(sa.select(adherence).where(*key).with_for_update()).one()
    adherent, weight = fade_in(row.adherent, row.weight, group, half_life)
    values = {"adherent": adherent, "weight": weight, "evaluations": row.evaluations + len(group)}
    now = utc_now()
    connection.execute(sa.update(adherence).where(*key).values(**values, updated_at=now))
    _remember(connection, model_id, domain, now, adherent / weight, values["evaluations"])


def _remember(connection: Connection, model_id: str, domain: str, now: str, mean: float, evaluations: int) -> None:
    """Keep the estimate as that of its minute, ten minutes and hour; where one begins, drop what is too old."""
    columns = adherence_history.c
    for span, days in HISTORY_DAYS.items():
        minute = {1: now[:16], 10: f"{now[:15]}0", 60: f"{now[:14]}00"}[span]
        values = {"mean": mean, "evaluations": evaluations}
        row = {"model_id": model_id, "domain": domain, "span": span, "minute": minute, **values}
        mine = (columns.model_id == model_id, columns.domain == domain, columns.span == span)
        if insert_new(connection, adherence_history, [row], ["model_id", "domain", "span", "minute"]):
            oldest = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M")
            connection.execute(sa.delete(adherence_history).where(*mine, columns.minute < oldest))
        else:
            same = sa.update(adherence_history).where(*mine, columns.minute == minute)
            connection.execute(same.values(**values))
