"""Texts gathered from a structure, scanned as one, and written back.

Scanning costs about a microsecond a call however short the text, so the texts of a record are joined and
scanned in one go. Each stands behind the name of its key, which counts as context ("phone": "555 1234").
"""

from __future__ import annotations

import re
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
_JSON_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
# JSON inside JSON deeper than this is cleaned as text.
_NESTED: Final = 4


# A mask turns these into neighbours of a boundary, so that what they belong to must be looked at again.
_GLUE: Final = frozenset(bytes([c]) for c in b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-+(:")

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

    def scrub(self, counts: Counter[str], *, write: bool) -> bool:
        """Finds and counts; with `write`, also masks, again until nothing more is found. Whether there was anything."""
        if not self._parts:
            return False
        joined = "".join(self._parts)
        data = encode(joined)
        hits = self._detector.scan(data)
        if not hits:
            return False
        ascii_only = len(data) == len(joined)
        found = False
        offset = index = 0
        next_hit = hits[0].start
        for at, part in enumerate(self._parts):
            end = offset + (len(part) if ascii_only else len(encode(part)))
            if next_hit < end:
                put, holder, key, head_chars = self._targets[at]
                start = offset + (head_chars if ascii_only else len(encode(part[:head_chars])))
                mine = []
                while index < len(hits) and hits[index].start < end:
                    if hits[index].start >= start:
                        mine.append(hits[index].moved(-start, end - start))
                    index += 1
                text = data[start:end]
                mine = without_json_numbers(text, mine)
                if mine:
                    found = True
                    clean = mask(self._detector, data[offset:start], text, mine, counts, again=write)
                    if write:
                        put(holder, key, decode(clean))
                if index == len(hits):
                    break
                next_hit = hits[index].start
            offset = end
        return found


def mask(detector: Detector, head: bytes, text: bytes, hits: list[Hit], counts: Counter[str], *, again: bool) -> bytes:
    """`text` (which stands behind `head` when scanned) masked at `hits`; with `again`, until nothing is left."""
    size = len(head)
    for _ in range(_MAX_PASSES):
        glued = False
        for hit in hits:
            counts[hit.type] += 1
            # What stands so close that a mask in the hit's place can make it a value of its own.
            if text[hit.start - 1 : hit.start] in _GLUE or text[hit.end : hit.end + 1] in _GLUE:
                glued = True
        text = replace(text, hits)
        if not (again and glued):
            break
        found = detector.scan(head + text)
        hits = without_json_numbers(text, [hit.moved(-size, len(text)) for hit in found if hit.start >= size])
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
    if not any(_may_be_number(text, hit) for hit in hits):
        return hits
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return hits
    return [hit for hit in hits if not (_may_be_number(text, hit) and _is_number(text, hit.start))]


def _may_be_number(text: bytes, hit: Hit) -> bool:
    """A first look: what stands around it would fit a number, but also digits in a text ("cards: 4111..., ...")."""
    before, after = text[hit.start - 1 : hit.start], text[hit.end : hit.end + 1]
    return text[hit.start : hit.end].isdigit() and before in _JSON_BEFORE and after in _JSON_AFTER


def _is_number(text: bytes, at: int, depth: int = 0) -> bool:
    """Whether the digit at `at` of the JSON `text` belongs to a number, of it or of JSON inside one of its strings."""
    for found in _JSON_STRING.finditer(text):
        if found.start() > at:
            break
        if at < found.end():
            return depth < _NESTED and _is_number_inside(text, found.start(), found.end(), at, depth)
    return True


def _is_number_inside(text: bytes, start: int, end: int, at: int, depth: int) -> bool:
    try:
        inner = encode(orjson.loads(text[start:end]))
        if inner[:1] not in (b"{", b"["):
            return False
        orjson.loads(inner)
        before = encode(orjson.loads(text[start:at] + b'"'))
    except orjson.JSONDecodeError:
        return False
    return _is_number(inner, len(before), depth + 1)
