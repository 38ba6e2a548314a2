"""RE2 expressions over bytes.

google-re2's match objects are Python and cost more than the match itself (2 to 3 us against 1 us on a record), so
the compiled expression underneath is asked directly where the package has it as expected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import re2

Span = tuple[int, int]
_Match = Callable[[Any, bytes, int, int], Any]
_NOTHING: Final = (-1, -1)


class Automaton:
    """One compiled expression; linear in what it reads, immutable, safe in threads."""

    __slots__ = ("_anchored", "_match", "_search")

    def __init__(self, expression: str, *, raw_bytes: bool = False, capture: bool = True) -> None:
        """`raw_bytes`: the text need not be UTF-8, a character is a byte. Without `capture` there are no groups."""
        options = re2.Options()
        options.never_capture = not capture
        if raw_bytes:
            options.encoding = re2.Options.Encoding.LATIN1
        compiled = re2.compile(expression.encode("latin-1") if raw_bytes else expression, options)
        self._match: _Match
        try:
            anchors: Any = re2._re2.RE2.Anchor
            self._search, self._anchored = anchors.UNANCHORED, anchors.ANCHOR_START
            self._match = compiled._regexp.Match
            self._match(self._search, b"", 0, 0)
        except (AttributeError, TypeError):
            self._search, self._anchored = compiled.search, compiled.match
            self._match = _through_match_objects

    def occurs(self, data: bytes) -> bool:
        """Whether it matches anywhere."""
        return bool(self._match(self._search, data, 0, len(data))[0] != _NOTHING)

    def search(self, data: bytes, start: int = 0) -> list[Span] | None:
        """The first match from `start` on: its span and its groups' spans, (-1, -1) for those not taken part in."""
        spans: list[Span] = self._match(self._search, data, start, len(data))
        return None if spans[0] == _NOTHING else spans

    def match(self, data: bytes, start: int) -> list[Span] | None:
        """The match that begins at `start`."""
        spans: list[Span] = self._match(self._anchored, data, start, len(data))
        return None if spans[0] == _NOTHING else spans


def _through_match_objects(find: Any, data: bytes, start: int, stop: int) -> list[Span]:
    found = find(data, start, stop)
    return [_NOTHING] if found is None else [found.span(group) for group in range(found.re.groups + 1)]
