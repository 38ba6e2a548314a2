"""Walks a chain and names the first entry that does not fit: changed, missing, moved, added, or computed anew.

The links alone show every edit that was not followed by recomputing all that comes after it. What shows that too are
signed heads: at each sealed place the entry's digest must be the one that was signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from models.audit import ChainFault, ChainFaultKind, ChainHead, ChainReport, SignedHead
from policies.audit.chain import GENESIS, link_digest, sha256_hex

EMPTY = ChainHead(seq=0, digest=GENESIS)
"""The head of an empty chain."""

_NUMBERS = ("seq", "violation_count")
_TEXTS = ("entry_id", "event_type", "timestamp", "recorded_at", "body", "content_digest", "previous", "digest")
_OPTIONAL_TEXTS = ("model_id", "cycle_id", "domain")


class ChainCheck:
    """Walks the chain from after `anchor` and stops at the first entry that does not fit.

    `heads` are signed heads that were found genuine, in rising order of `seq`; those before the anchor are passed
    over. None means that there are none to check with, which the report tells.
    """

    def __init__(self, anchor: ChainHead = EMPTY, heads: Iterable[SignedHead] | None = None) -> None:
        self._anchor = anchor
        self._place = anchor.seq
        self._previous = anchor.digest
        self._misplaced = False
        self.fault: ChainFault | None = None
        self._heads: Iterator[SignedHead] = iter(() if heads is None else heads)
        self._sealed_through = None if heads is None else 0
        self._next_head = self._first_head()

    @property
    def expected_previous(self) -> str:
        """The digest that the next entry must name as the one before it."""
        return self._previous

    @property
    def misplaced(self) -> bool:
        """Whether the fault is a sound entry in the wrong place; `settle_misplaced` then says which kind."""
        return self._misplaced

    @property
    def end(self) -> ChainHead:
        """The last entry that was found sound."""
        return ChainHead(seq=self._place, digest=self._previous)

    def walk(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Check the next rows, in order of `seq`. False once a fault is found."""
        for row in rows:
            if self.fault is None:
                self._step(row)
            if self.fault is not None:
                return False
            self._place += 1
            self._previous = row["digest"]
        return self.fault is None

    def settle_misplaced(self, *, successor_exists: bool) -> None:
        """Say whether the entry that belongs in a misplaced one's place stands elsewhere in the log, or is gone."""
        if self.fault is not None and self._misplaced:
            kind = ChainFaultKind.REORDERED if successor_exists else ChainFaultKind.MISSING
            self.fault = self.fault.model_copy(update={"kind": kind})

    def refuse_anchor(self, detail: str) -> None:
        """Have the check fail because nothing shows that the entries up to the anchor were rightly pruned."""
        if self.fault is None:
            self._fail(ChainFaultKind.ANCHOR, self._anchor.seq, None, detail)

    def finish(self, head: ChainHead | None) -> ChainReport:
        """Compare the end of the walk with the head row and with the heads that were signed; report."""
        if self.fault is None:
            self._check_head(head)
        if self.fault is None and self._next_head is not None:
            sealed = self._next_head
            found = f"the log ends at entry {self._place}, and entry {sealed.seq} was sealed at {sealed.sealed_at}"
            self._fail(ChainFaultKind.MISSING, self._place + 1, None, found, sealed.seq)
        return self.report(head)

    def report(self, head: ChainHead | None) -> ChainReport:
        """What was found so far."""
        sealed = self._sealed_through
        return ChainReport(
            ok=self.fault is None,
            entries=self._place - self._anchor.seq,
            head=head,
            fault=self.fault,
            anchor=self._anchor if self._anchor.seq else None,
            sealed_through=sealed,
            unsealed=None if sealed is None else self._place - max(sealed, self._anchor.seq),
        )

    def _first_head(self) -> SignedHead | None:
        for head in self._heads:
            if head.seq > self._anchor.seq:
                return head
            self._sealed_through = head.seq
            if head.seq == self._anchor.seq and head.digest != self._anchor.digest:
                self.refuse_anchor(f"entry {head.seq}, after which this chain begins, is not the one that was sealed")
                return None
        return None

    def _step(self, row: Mapping[str, Any]) -> None:
        place = self._place + 1
        if not _is_well_formed(row):
            found = "a field is not of the kind that the log writes"
            self._fail(ChainFaultKind.CHANGED, place, _text(row["entry_id"]), found)
        elif row["seq"] != place:
            found = f"entry {row['seq']} ({row['entry_id']}) stands where entry {place} belongs"
            self._fail(ChainFaultKind.MISSING, place, None, found)
        elif sha256_hex(row["body"]) != row["content_digest"]:
            self._fail(ChainFaultKind.CHANGED, place, row["entry_id"], "its body does not match its content digest")
        elif link_digest(row) != row["digest"]:
            self._fail(ChainFaultKind.CHANGED, place, row["entry_id"], "its fields do not match its digest")
        elif row["previous"] != self._previous:
            self._misplaced = True
            found = "it is sound in itself but does not follow the entry before it"
            self._fail(ChainFaultKind.REORDERED, place, row["entry_id"], found)
        elif self._next_head is not None and self._next_head.seq == place:
            self._compare(row, self._next_head)

    def _compare(self, row: Mapping[str, Any], sealed: SignedHead) -> None:
        if row["digest"] == sealed.digest:
            self._sealed_through = sealed.seq
            self._next_head = next(self._heads, None)
            return
        first = max(self._sealed_through or 0, self._anchor.seq) + 1
        found = (
            f"from entry {first} on the links agree with each other, but entry {sealed.seq} is not the one that was "
            f"sealed at {sealed.sealed_at}: the chain was computed anew from somewhere between the two"
        )
        self._fail(ChainFaultKind.RECOMPUTED, first, None, found, sealed.seq)

    def _check_head(self, head: ChainHead | None) -> None:
        end = self._place
        if head is None:
            self._fail(ChainFaultKind.HEAD, end, None, "the head row is gone")
        elif head.seq > end:
            found = f"the log ends at entry {end}, its head is entry {head.seq}"
            self._fail(ChainFaultKind.MISSING, end + 1, None, found)
        elif head.seq < end:
            found = f"the log goes on to entry {end}, its head is entry {head.seq}"
            self._fail(ChainFaultKind.BEYOND_HEAD, head.seq + 1, None, found)
        elif head.digest != self._previous:
            self._fail(ChainFaultKind.HEAD, head.seq, None, "the head's digest is not the last entry's")

    def _fail(
        self, kind: ChainFaultKind, seq: int, entry_id: str | None, detail: str, through: int | None = None
    ) -> None:
        self.fault = ChainFault(kind=kind, seq=seq, entry_id=entry_id, detail=detail, through=through)


def _is_well_formed(row: Mapping[str, Any]) -> bool:
    """Whether every field has its type: a tampered database, or an export, may hold anything."""
    return (
        all(type(row[name]) is int for name in _NUMBERS)
        and all(isinstance(row[name], str) for name in _TEXTS)
        and all(row[name] is None or isinstance(row[name], str) for name in _OPTIONAL_TEXTS)
        and row["body"].isascii()
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
