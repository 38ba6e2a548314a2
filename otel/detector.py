"""Finds personal data in UTF-8 bytes, by the table, in linear time.

One RE2 automaton made of all patterns runs over the text once; only where it stops are the patterns told
apart and validated. Three automata share the table: the exact one for text, and two that only say whether
a closer look is due, for serialised JSON and for serialised protobuf (whose tags and lengths, any bytes, stand
directly before a text).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from otel.automaton import Automaton, Span
from otel.expressions import (
    BOUNDARY,
    ESCAPED_ASCII,
    GAP,
    JOIN,
    PROTO_BOUNDARY,
    PROTO_JOIN,
    QUOTES,
    expression,
    secret_expression,
    secret_head,
    subject_expressions,
)
from otel.keys import KeyClassifier, KeyKind
from otel.table import SECRET_VALIDATOR, PiiPattern, PiiTable
from otel.validators import VALIDATORS, Validator

# Text handed to `Detector.scan` starts with this byte and has it between its parts: a boundary that no
# pattern crosses. KEY_END stands between the name of a key and its value, which patterns may look across.
PART = b"\x00"
KEY_END = b"\x01"

_AFTER: Final = rb"[0-9A-Za-z_]|[.\-][0-9A-Za-z]"
_LAST_GROUP: Final = re.compile(r"[ .\-/()]+[0-9]+$")
_LOOK_BACK: Final = 40
_NAME_END: Final = re.compile(rb"[0-9A-Za-z_.\-]{1,80}$")
_GIT_LOGIN: Final = re.compile(rb"(?<![0-9A-Za-z._%+'\-\x80-\xff])git@")
# What stands for a secret in source code: nothing, a call to come, a setting.
_CODE: Final = re.compile(
    rb"None|null|nil|undefined|[Tt]rue|[Ff]alse|await|new|(?:process\.env|os\.environ|self|this|settings|config|args)\.[\w.]+"
)
_PATH: Final = re.compile(rb"[A-Za-z_]\w*(?:(?:\.|::)[A-Za-z_]\w*)*")
_ESCAPED: Final = frozenset(b"nrtbf")


class Hit(NamedTuple):
    """Personal data at `start:end`, in bytes."""

    start: int
    end: int
    type: str
    mask: bytes

    def moved(self, by: int, limit: int | None = None) -> Hit:
        """The hit counted from another origin, and not beyond `limit`."""
        end = self.end + by
        return Hit(self.start + by, end if limit is None or end < limit else limit, self.type, self.mask)


@dataclass(frozen=True, slots=True)
class _Form:
    """One entry of the table with what checks a match of its pattern."""

    entry: PiiPattern
    validator: Validator
    mask: bytes
    not_before: Automaton | None


class Detector:
    """Compiled form of a table; immutable, cheap to share, safe in threads."""

    def __init__(self, table: PiiTable, keys: KeyClassifier) -> None:
        self._keys = keys
        self._secret = next((p for p in table.patterns if p.validator == SECRET_VALIDATOR), None)
        entries = [p for p in table.patterns if p is not self._secret]
        self._forms = [
            _Form(
                entry=entry,
                validator=VALIDATORS[entry.validator],
                mask=entry.mask.encode(),
                not_before=Automaton(f"(?:{entry.not_before})$", capture=False) if entry.not_before else None,
            )
            for entry in entries
        ]
        head = secret_head(table)
        self._secret_at = Automaton(secret_expression(head, self._secret)) if self._secret else None
        groups = [expression(entry, BOUNDARY, JOIN, capture=True) for entry in entries]
        secret_text = rf"{head}{QUOTES}{GAP}[:=]{GAP}{QUOTES}[^\s]"
        self._find = Automaton("|".join([*groups, secret_text]))
        # The entries from the n-th on, for a place where an earlier one matched but did not validate.
        self._from = [Automaton("|".join(groups[first:])) for first in range(len(groups))]
        subject = subject_expressions(table)
        json_parts = [expression(e, BOUNDARY, JOIN, prefilter=True) for e in entries]
        self._json = Automaton(
            "|".join([*json_parts, secret_text, subject.json, ESCAPED_ASCII]), raw_bytes=True, capture=False
        )
        proto_parts = [expression(e, PROTO_BOUNDARY, PROTO_JOIN, prefilter=True) for e in entries]
        secret_proto = rf"{head}(?:\x12|{QUOTES}{GAP}[:=])"
        proto_parts += [secret_proto, subject.json, subject.proto, ESCAPED_ASCII]
        self._proto = Automaton("|".join(proto_parts), raw_bytes=True, capture=False)
        # JSON inside a text that patterns alone cannot clean: subjects, maps under secret keys, escaped ASCII.
        nested = rf"{head}{QUOTES}{GAP}:{GAP}[\[{{]"
        inside = rf"{subject.json}|{nested}|{ESCAPED_ASCII}"
        self._json_inside = Automaton(inside, raw_bytes=True, capture=False)
        self._subject_json = Automaton(subject.json, raw_bytes=True, capture=False)
        # Finding a word costs a tenth of the expression, and most events hold neither.
        names = sorted((name.removesuffix(".id").encode() for name in table.subject_fields), key=len)
        self._subject_words = tuple(
            name for at, name in enumerate(names) if not any(shorter in name for shorter in names[:at])
        )
        self._subject_proto = Automaton(f"{subject.json}|{subject.proto}", raw_bytes=True, capture=False)
        self._after = re.compile(_AFTER)

    def json_needs_look(self, data: bytes) -> bool:
        """False only if serialised JSON `data` certainly holds nothing to mask and no subject to tokenise."""
        return self._json.occurs(data)

    def proto_needs_look(self, data: bytes) -> bool:
        """The same for a serialised OTLP message."""
        return self._proto.occurs(data)

    def has_subject(self, data: bytes) -> bool:
        """Whether JSON text `data` holds a subject field whose value is no token."""
        for word in self._subject_words:
            if word in data:
                return self._subject_json.occurs(data)
        return False

    def proto_has_subject(self, data: bytes) -> bool:
        """Whether a serialised OTLP message holds a subject field whose value is no token."""
        return self._subject_proto.occurs(data)

    def json_inside_needs_parsing(self, data: bytes) -> bool:
        """Whether text `data`, if it is JSON, must be parsed to be cleaned."""
        return self._json_inside.occurs(data)

    def scan(self, data: bytes) -> list[Hit]:
        """All personal data in `data` (which starts with PART), in order, without overlaps."""
        hits: list[Hit] = []
        position = 0
        while (spans := self._find.search(data, position)) is not None:
            start = spans[0][0]
            hit = self._classify(data, start, spans, hits[-1].end if hits else 0)
            if hit is None or hit.start < position:
                position = start + 1
            else:
                hits.append(hit)
                position = hit.end
        return hits

    def _classify(self, data: bytes, at: int, spans: list[Span] | None, floor: int) -> Hit | None:
        """What was found at `at` is; where it does not validate, whatever entry after it matches there too."""
        first = 0
        while spans is not None and (group := _group(spans)):
            start, end = spans[group]
            first += group
            hit = self._check(self._forms[first - 1], data, start, end, floor)
            if hit is not None:
                return hit
            spans = self._from[first].match(data, at) if first < len(self._forms) else None
        return self._check_secret(data, at)

    def _check(self, form: _Form, data: bytes, start: int, end: int, floor: int) -> Hit | None:
        # What stands before `floor` is masked already, and no context any more.
        if not form.entry.bounded and start and data[start - 1] == 0x5C and data[start] in _ESCAPED:
            start += 1  # the letter of a JSON escape such as \n is no part of the value
        if form.entry.validator == "none":
            # No local part, or the login of all git remotes, which is nobody's.
            if data[start] == 0x40 or _GIT_LOGIN.search(data, max(0, start - 3), end):
                return None
        else:
            end = start + self._valid_length(form, data, start, end)
        if end <= start:
            return None
        if form.not_before is not None and form.not_before.occurs(data[max(floor, start - _LOOK_BACK) : start]):
            return None
        return Hit(start, end, form.entry.name, form.mask)

    def _valid_length(self, form: _Form, data: bytes, start: int, end: int) -> int:
        """How much of `data[start:end]` is a value that ends where a word or number ends; 0 if nothing."""
        text = data[start:end].decode("utf-8", "replace")
        while (length := form.validator(text)) > 0:
            if form.entry.context_after or not self._after.match(data, start + length):
                return length
            # The pattern may have taken the front of what follows ("+44 20 7946 0958/10.0.0.1").
            shorter = _LAST_GROUP.sub("", text[:length])
            if len(shorter) == length:
                return 0
            text = shorter
        return 0

    def _check_secret(self, data: bytes, at: int) -> Hit | None:
        if self._secret is None or self._secret_at is None:
            return None
        spans = self._secret_at.match(data, at)
        if spans is None:
            return None
        key_quote, sign, space, quote = (data[start:end] for start, end in spans[1:5])
        name_end = spans[1][0]
        name = _NAME_END.search(data[max(0, name_end - 80) : name_end])
        if name is None or self._keys.kind(name.group().decode()) is not KeyKind.SECRET:
            return None
        start = spans[4][1]
        if quote:
            end = _closing(data, start, quote)
        else:
            end = spans[5][1]
            value = data[start:end]
            if key_quote or value == self._secret.mask.encode() or not _is_secret_word(value, sign, space):
                return None
            if _is_code(value, space, data[end : end + 1]):
                return None
        if end <= start or data[start:end] == self._secret.mask.encode():
            return None
        return Hit(start, end, self._secret.name, self._secret.mask.encode())


def _group(spans: list[Span]) -> int:
    """The number of the group that took part: there is one for each alternative. 0 for none."""
    for group in range(1, len(spans)):
        if spans[group][0] >= 0:
            return group
    return 0


def _is_secret_word(value: bytes, sign: bytes, space: bytes) -> bool:
    """Whether an unquoted value is a secret and not the next word of a sentence ("the secret: be kind")."""
    if sign == b"=" or not space or b" " in value:
        return True
    body = value.rstrip(b".?!:")
    return any(not 0x41 <= (char & 0xDF) <= 0x5A for char in body) and len(body) >= 4


def _is_code(value: bytes, space: bytes, after: bytes) -> bool:
    """Whether source code reads the secret from elsewhere: `password = getpass.getpass()`, `token = await f()`."""
    if _CODE.fullmatch(value):
        return True
    is_called = after in (b"(", b"[") and _PATH.fullmatch(value) is not None
    return is_called and (bool(space) or b"." in value or b"::" in value)


def _closing(data: bytes, start: int, quote: bytes) -> int:
    """Where the quoted text that starts at `start` ends: before the same quote, or at the end of its part."""
    stop = data.find(PART, start)
    stop = len(data) if stop < 0 else stop
    position = start
    while (position := data.find(quote, position, stop)) >= 0:
        if len(quote) > 1 or data[position - 1] != 0x5C:
            return position
        position += 1
    return stop
