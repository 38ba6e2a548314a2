"""Texts gathered from a structure, scanned as one, and written back.

Scanning costs about a microsecond a call however short the text, so the texts of a record are joined and
scanned in one go. Each stands behind the name of its key, which counts as context ("phone": "555 1234").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableMapping, MutableSequence
from typing import Any, Final

import orjson

from otel.detector import KEY_END, PART, Detector, Hit

_PART: Final = PART.decode()
_KEY_END: Final = KEY_END.decode()
_MAX_PASSES: Final = 8
_JSON_BEFORE: Final = b":,[ \t\r\n"
_JSON_AFTER: Final = b",}] \t\r\n"


# A mask turns these into neighbours of a boundary, so that what they belong to must be looked at again.
_GLUE: Final = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-+(:")

# Puts a clean text back: write(holder, key, text).
Write = Callable[[Any, Any, str], None]


def set_item(holder: MutableMapping[Any, Any] | MutableSequence[Any], key: Any, text: str) -> None:
    """Writes into a map or a list."""
    holder[key] = text


class Segments:
    """The texts of one record (or of one text), in order."""

    __slots__ = ("_detector", "_parts", "_targets")

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._parts: list[str] = []
        self._targets: list[tuple[Write, Any, Any, int]] = []

    def add(self, write: Write, holder: Any, key: Any, name: str, text: str) -> None:
        """Adds `text`, found under a key called `name`; `write(holder, key, clean)` puts the clean text back."""
        self._parts.append(f"{_PART}{name}{_KEY_END}{text}")
        self._targets.append((write, holder, key, len(name) + 2))

    def scrub(self, counts: Counter[str], *, write: bool) -> None:
        """Finds and counts; with `write`, also masks, again until nothing more is found."""
        if not self._parts:
            return
        joined = "".join(self._parts)
        data = encode(joined)
        hits = self._detector.scan(data)
        if not hits:
            return
        ascii_only = len(data) == len(joined)
        offset = index = 0
        for part, (put, holder, key, head_chars) in zip(self._parts, self._targets, strict=True):
            size = len(part) if ascii_only else len(encode(part))
            end = offset + size
            if hits[index].start < end:
                head = head_chars if ascii_only else len(encode(part[:head_chars]))
                start = offset + head
                mine = []
                while index < len(hits) and hits[index].start < end:
                    if hits[index].start >= start:
                        mine.append(hits[index].moved(-start, end - start))
                    index += 1
                text = data[start:end]
                mine = without_json_numbers(text, mine)
                if mine:
                    clean = mask(self._detector, data[offset:start], text, mine, counts, again=write)
                    if write:
                        put(holder, key, decode(clean))
                if index == len(hits):
                    return
            offset = end


def mask(detector: Detector, head: bytes, text: bytes, hits: list[Hit], counts: Counter[str], *, again: bool) -> bytes:
    """`text` (which stands behind `head` when scanned) masked at `hits`; with `again`, until nothing is left."""
    size = len(head)
    for _ in range(_MAX_PASSES):
        for hit in hits:
            counts[hit.type] += 1
        glued = any(_is_glued(text, hit) for hit in hits)
        text = replace(text, hits)
        if not (again and glued):
            break
        found = detector.scan(head + text)
        hits = without_json_numbers(text, [hit.moved(-size, len(text)) for hit in found if hit.start >= size])
        if not hits:
            break
    return text


def _is_glued(text: bytes, hit: Hit) -> bool:
    """Whether something stands so close that a mask in the hit's place can make it a value of its own."""
    return (hit.start > 0 and text[hit.start - 1] in _GLUE) or (hit.end < len(text) and text[hit.end] in _GLUE)


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
