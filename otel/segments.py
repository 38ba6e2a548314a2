"""Texts gathered from a structure, scanned as one, and written back.

Scanning costs about a microsecond a call however short the text, so the texts of a record are joined and
scanned in one go. Each stands behind the name of its key, which counts as context ("phone": "555 1234").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableMapping, MutableSequence
from typing import Any, Final, NamedTuple

import orjson

from otel.detector import KEY_END, PART, Detector, Hit

_MAX_PASSES: Final = 8
_JSON_BEFORE: Final = b":,[ \t\r\n"
_JSON_AFTER: Final = b",}] \t\r\n"


class _Segment(NamedTuple):
    write: Callable[[Any, Any, str], None]
    holder: Any
    key: Any
    name: bytes
    text: bytes


def set_item(holder: MutableMapping[Any, Any] | MutableSequence[Any], key: Any, text: str) -> None:
    """Writes into a map or a list."""
    holder[key] = text


class Segments:
    """The texts of one record (or of one text), in order."""

    __slots__ = ("_detector", "_segments")

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._segments: list[_Segment] = []

    def add(self, write: Callable[[Any, Any, str], None], holder: Any, key: Any, name: str, text: str) -> None:
        """Adds `text`, found under a key called `name`; `write(holder, key, clean)` puts the clean text back."""
        self._segments.append(_Segment(write, holder, key, encode(name), encode(text)))

    def scrub(self, counts: Counter[str], *, write: bool) -> None:
        """Finds and counts; with `write`, also masks, again until nothing more is found.

        A mask makes new boundaries: what stood glued to an address can be told apart once it is masked.
        """
        parts = [PART + segment.name + KEY_END + segment.text for segment in self._segments]
        hits = self._detector.scan(b"".join(parts))
        if not hits:
            return
        offset = index = 0
        for segment, part in zip(self._segments, parts, strict=True):
            start, end = offset + len(segment.name) + 2, offset + len(part)
            mine: list[Hit] = []
            while index < len(hits) and hits[index].start < end:
                hit = hits[index]
                if hit.start >= start:
                    mine.append(Hit(hit.start - start, min(hit.end, end) - start, hit.type, hit.mask))
                index += 1
            offset = end
            mine = without_json_numbers(segment.text, mine)
            if mine:
                clean = self._mask(segment, mine, counts, again=write)
                if write:
                    segment.write(segment.holder, segment.key, decode(clean))

    def _mask(self, segment: _Segment, hits: list[Hit], counts: Counter[str], *, again: bool) -> bytes:
        head = PART + segment.name + KEY_END
        text = segment.text
        for _ in range(_MAX_PASSES):
            counts.update(hit.type for hit in hits)
            text = replace(text, hits)
            if not again:
                break
            found = self._detector.scan(head + text)
            size = len(head)
            hits = [Hit(h.start - size, h.end - size, h.type, h.mask) for h in found if h.start >= size]
            hits = without_json_numbers(text, hits)
            if not hits:
                break
        return text


def encode(text: str) -> bytes:
    """UTF-8; a lone surrogate (JSON can write one) passes."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """The reverse of `encode`."""
    return data.decode("utf-8", "surrogatepass")


def replace(text: bytes, hits: list[Hit]) -> bytes:
    """`text` with each hit's mask in its place."""
    pieces: list[bytes] = []
    position = 0
    for hit in hits:
        pieces += (text[position : hit.start], hit.mask)
        position = hit.end
    pieces.append(text[position:])
    return b"".join(pieces)


def without_json_numbers(text: bytes, hits: list[Hit]) -> list[Hit]:
    """Drops hits that are numbers of a JSON text: integers keep their value, and the text stays JSON."""
    if text[:1] not in (b"{", b"["):
        return hits
    kept = [hit for hit in hits if not _may_be_number(text, hit)]
    if len(kept) == len(hits):
        return hits
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return hits
    return kept


def _may_be_number(text: bytes, hit: Hit) -> bool:
    before, after = text[hit.start - 1 : hit.start], text[hit.end : hit.end + 1]
    return text[hit.start : hit.end].isdigit() and before in _JSON_BEFORE and after in _JSON_AFTER
