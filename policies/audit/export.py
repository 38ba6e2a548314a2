"""The log as a file that can be verified alone: JSON lines, one contiguous range, with the signed heads that cover it.

A header says what precedes the range; then the entries as the database holds them, the signed heads, and a closing
line. An export proves what it holds. That something comes after it, only heads kept elsewhere can show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, func, select

from models.audit import ChainHead, ChainReport, SignedHead
from policies.audit.chain import format_time
from policies.audit.check import EMPTY, ChainCheck
from policies.audit.engine import transaction
from policies.audit.errors import ExportUnreadable, NothingToExport
from policies.audit.redact import canonical_json
from policies.audit.seal import HeadChain, KeyRing
from policies.audit.tables import audit_entries
from policies.audit.verify import digest_at, page, pruned_through

VERSION = "audit-export/1"

_ENTRY, _HEAD, _END = "entry", "head", "end"
_COLUMNS = frozenset(audit_entries.c.keys())


@dataclass(frozen=True, slots=True)
class Selection:
    """What to export: entries recorded since a time (inclusive) and until one (not), from a place on."""

    since: datetime | None = None
    until: datetime | None = None
    from_seq: int = 1


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported. `sealed_through` is the last entry that a head in the export covers; 0 for none."""

    first: int
    last: int
    heads: int
    sealed_through: int


def write_export(
    engine: Engine, heads: Iterable[SignedHead], selection: Selection, now: datetime, out: TextIO
) -> Exported:
    """Write a range as it stood at one moment. It goes on to the next signed head, so that all of it is covered.

    `heads` are read first: those made while this runs are left out. Raises NothingToExport, AuditStoreUnavailable.
    """
    known = [head for head in heads if head.seq > 0]
    with transaction(engine) as connection:
        first, last = _range(connection, selection)
        covering = next((head.seq for head in known if head.seq >= last), last)
        last = min(covering, _newest(connection))
        after = ChainHead(seq=first - 1, digest=digest_at(connection, first - 1) or "")
        _write(out, VERSION, {"after": after.model_dump(), "through": last, "exported_at": format_time(now)})
        place = first - 1
        while place < last:
            rows = page(connection, place)
            if not rows:
                break
            for row in rows:
                if row["seq"] <= last:
                    _write(out, _ENTRY, row)
            place = rows[-1]["seq"]
    chosen = [head for head in known if first <= head.seq <= last]
    for head in chosen:
        _write(out, _HEAD, head.model_dump())
    _write(out, _END, {"heads": len(chosen)})
    return Exported(first, last, len(chosen), chosen[-1].seq if chosen else 0)


def verify_export(path: Path, keys: KeyRing, outside: Iterable[SignedHead] = ()) -> ChainReport:
    """Check an export by itself, and against heads from `outside` where there are some.

    The entries that no head covers are counted as `unsealed`. Raises ExportUnreadable, OSError.
    """
    header, heads, fault = _frame(path, keys)
    try:
        after, through = ChainHead.model_validate(header["after"]), int(header["through"])
    except (ValidationError, KeyError, TypeError, ValueError):
        raise ExportUnreadable(f"{path} does not begin with the header of an export") from None
    for head in outside:
        if after.seq <= head.seq <= through and heads.setdefault(head.seq, head).digest != head.digest:
            fault = fault or f"{path} holds a head of entry {head.seq} that differs from the one kept elsewhere"
    check = ChainCheck(after, [heads[seq] for seq in sorted(heads) if seq <= through])
    if after.seq == 0 and after != EMPTY:
        check.refuse_anchor("the export begins with the first entry, and not with an empty chain")
    rows = _rows(path)
    check.walk(rows)
    if check.misplaced:
        check.settle_misplaced(successor_exists=any(row["previous"] == check.expected_previous for row in rows))
    report = check.finish(ChainHead(seq=through, digest=check.end.digest))
    return report.model_copy(update={"ok": report.ok and fault is None, "checkpoint_fault": fault})


def _range(connection: Connection, selection: Selection) -> tuple[int, int]:
    columns = audit_entries.c
    pruned = pruned_through(connection)
    first = max(selection.from_seq, 1 if pruned is None else pruned["seq"] + 1)
    last = _newest(connection)
    if selection.since is not None:
        query = select(func.min(columns.seq)).where(columns.seq >= first)
        first = (
            connection.execute(query.where(columns.recorded_at >= format_time(selection.since))).scalar() or last + 1
        )
    if selection.until is not None:
        query = select(func.max(columns.seq)).where(columns.seq >= first)
        last = connection.execute(query.where(columns.recorded_at < format_time(selection.until))).scalar() or 0
    if last < first:
        raise NothingToExport("the audit log holds no entry of what was asked for: widen the range")
    return first, last


def _newest(connection: Connection) -> int:
    return int(connection.execute(select(func.max(audit_entries.c.seq))).scalar() or 0)


def _frame(path: Path, keys: KeyRing) -> tuple[dict[str, Any], dict[int, SignedHead], str | None]:
    """Header and trusted heads of an export, and what is wrong with the heads. Checks the form of all its lines."""
    header: dict[str, Any] = {}
    heads: dict[int, SignedHead] = {}
    chain = HeadChain(keys, None)
    expected, counted, kind = VERSION, 0, ""
    for number, (kind, fields) in enumerate(_lines(path), 1):
        where = f"line {number} of {path}"
        if kind == VERSION == expected:
            header, expected = fields, _ENTRY
        elif kind == _ENTRY == expected:
            if fields.keys() != _COLUMNS:
                raise ExportUnreadable(f"{where} is no entry: it has other fields")
        elif kind == _HEAD and expected in {_ENTRY, _HEAD}:
            expected = _HEAD
            counted += 1
            head = _signed(fields)
            if chain.trusts(head, where) and head is not None:
                heads[head.seq] = head
        elif kind == _END and expected in {_ENTRY, _HEAD}:
            expected = ""
            if fields.get("heads") != counted:
                raise ExportUnreadable(f"{path} closes with {fields.get('heads')} signed heads and holds {counted}")
        else:
            raise ExportUnreadable(f"{where} does not belong there: {kind!r}")
    if kind != _END:
        raise ExportUnreadable(f"{path} is cut short: its closing line is missing")
    return header, heads, chain.fault


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return (fields for kind, fields in _lines(path) if kind == _ENTRY)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                fields = json.loads(line)
                kind = fields.pop("kind")
            except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
                raise ExportUnreadable(f"line {number} of {path} is no line of an export") from None
            yield str(kind), fields


def _signed(fields: dict[str, Any]) -> SignedHead | None:
    try:
        return SignedHead.model_validate(fields)
    except ValidationError:
        return None


def _write(out: TextIO, kind: str, fields: dict[str, Any]) -> None:
    out.write(f"{canonical_json({'kind': kind, **fields})}\n")
