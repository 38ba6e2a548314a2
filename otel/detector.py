"""Finds personal data in UTF-8 bytes, by the table, in linear time.

One RE2 automaton made of all patterns runs over the text once; only where it stops are the patterns told
apart and validated. Three automata share the table: the exact one for text, and two that only say whether
a closer look is due, for serialised JSON and for serialised protobuf (whose tags and lengths, any bytes, stand
directly before a text).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import re2

from otel.keys import KeyClassifier
from otel.subject import TOKEN_HEX_DIGITS, TOKEN_PREFIX
from otel.table import SECRET_VALIDATOR, PiiPattern, PiiTable
from otel.validators import VALIDATORS, Validator

# Text handed to `Detector.scan` starts with this byte and has it between its parts: a boundary that no
# pattern crosses. KEY_END stands between the name of a key and its value, which patterns may look across.
PART = b"\x00"
KEY_END = b"\x01"

# A boundary before a value: one character that no longer word or number could hold, or a JSON escape.
_BOUNDARY: Final = r"(?:[^0-9A-Za-z_.\-+]|\\[nrtbf]|\\u00[01][0-9A-Fa-f])"
# In protobuf also a field's tag (string fields of AnyValue, KeyValue, LogRecord, scope and resource) and length.
_PROTO_LENGTH: Final = r"(?:[\x80-\xff]{0,3}[\x00-\x7f])"
_PROTO_BOUNDARY: Final = rf"(?:{_BOUNDARY}|[\x0a\x12\x1a\x3a\x62]{_PROTO_LENGTH})"
# Between a word of context and the value: joining words and punctuation.
_JOIN: Final = r"""(?:[\s:#=,.()"'_?\x01\-]|\\+(?:[nrtf"]|u0001))"""
_PROTO_JOIN: Final = rf"(?:{_JOIN}|\x12{_PROTO_LENGTH}\x0a{_PROTO_LENGTH})"
_LINK: Final = r"(?i:numbers?|nos?|nr|num|is|was|are|at|on|to|via|me|us|my|our|your|the|registered)"
_LIST_OPENS: Final = rf"""[0-9A-Za-z_.\-]{{0,16}}(?:\\*["']\s?:\s?\[|\x12{_PROTO_LENGTH}\x2a)"""
_AFTER: Final = rb"[0-9A-Za-z_]|[.\-][0-9A-Za-z]"
# Where a word starts, and the space around = and :, escaped as JSON does or not.
_WORD_START: Final = r"(?:[^A-Za-z]|\\[nrtbf]|\\u00[01][0-9A-Fa-f])"
_GAP: Final = r"(?:\s|\\+[nrt]){0,2}"
_QUOTES: Final = r"""["'\\]{0,20}"""
_LAST_GROUP: Final = re.compile(r"[ .\-/()]+[0-9]+$")
_LOOK_BACK: Final = 40
_NAME_END: Final = re.compile(rb"[0-9A-Za-z_.\-]{1,80}$")
# A printable ASCII character written as \u0040 in JSON, which would hide an address from the patterns.
_ESCAPED_ASCII: Final = r"\\u00[2-7][0-9A-Fa-f]"
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
    not_before: Any


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
                not_before=re2.compile(f"(?:{entry.not_before})$") if entry.not_before else None,
            )
            for entry in entries
        ]
        head = _secret_head(table)
        self._secret_at = re2.compile(_secret_expression(head, self._secret)) if self._secret else None
        groups = [_expression(entry, _BOUNDARY, _JOIN, capture=True) for entry in entries]
        secret_text = rf"{head}{_QUOTES}{_GAP}[:=]{_GAP}{_QUOTES}[^\s]"
        self._find = re2.compile("|".join([*groups, secret_text]))
        # The entries from the n-th on, for a place where an earlier one matched but did not validate.
        self._from = [re2.compile("|".join(groups[first:])) for first in range(len(groups))]
        subject = _subject_expressions(table)
        json_parts = [_expression(e, _BOUNDARY, _JOIN, prefilter=True) for e in entries]
        self._json = _latin1("|".join([*json_parts, secret_text, subject.json, _ESCAPED_ASCII]))
        proto_parts = [_expression(e, _PROTO_BOUNDARY, _PROTO_JOIN, prefilter=True) for e in entries]
        secret_proto = rf"{head}(?:\x12|{_QUOTES}{_GAP}[:=])"
        proto_parts += [secret_proto, subject.json, subject.proto, _ESCAPED_ASCII]
        self._proto = _latin1("|".join(proto_parts))
        # JSON inside a text that patterns alone cannot clean: subjects, maps under secret keys, escaped ASCII.
        nested = rf"{head}{_QUOTES}{_GAP}:{_GAP}[\[{{]"
        inside = rf"{subject.json}|{nested}|{_ESCAPED_ASCII}"
        self._json_inside = _latin1(inside)
        self._subject_json = _latin1(subject.json)
        # Finding a word costs a tenth of the expression, and most events hold neither.
        names = sorted((name.removesuffix(".id").encode() for name in table.subject_fields), key=len)
        self._subject_words = tuple(
            name for at, name in enumerate(names) if not any(shorter in name for shorter in names[:at])
        )
        self._subject_proto = _latin1(f"{subject.json}|{subject.proto}")
        self._after = re.compile(_AFTER)

    def json_needs_look(self, data: bytes) -> bool:
        """False only if serialised JSON `data` certainly holds nothing to mask and no subject to tokenise."""
        return self._json.search(data) is not None

    def proto_needs_look(self, data: bytes) -> bool:
        """The same for a serialised OTLP message."""
        return self._proto.search(data) is not None

    def has_subject(self, data: bytes) -> bool:
        """Whether JSON text `data` holds a subject field whose value is no token."""
        for word in self._subject_words:
            if word in data:
                return self._subject_json.search(data) is not None
        return False

    def proto_has_subject(self, data: bytes) -> bool:
        """Whether a serialised OTLP message holds a subject field whose value is no token."""
        return self._subject_proto.search(data) is not None

    def json_inside_needs_parsing(self, data: bytes) -> bool:
        """Whether text `data`, if it is JSON, must be parsed to be cleaned."""
        return self._json_inside.search(data) is not None

    def scan(self, data: bytes) -> list[Hit]:
        """All personal data in `data` (which starts with PART), in order, without overlaps."""
        hits: list[Hit] = []
        position = 0
        find = self._find.search
        while (found := find(data, position)) is not None:
            start = found.start()
            hit = self._classify(data, start, found, hits[-1].end if hits else 0)
            if hit is None or hit.start < position:
                position = start + 1
            else:
                hits.append(hit)
                position = hit.end
        return hits

    def _classify(self, data: bytes, at: int, found: Any, floor: int) -> Hit | None:
        """What `found` at `at` is; where it does not validate, whatever entry after it matches there too."""
        first = 0
        while found is not None and (group := found.lastindex) is not None:
            start, end = found.span(group)
            first += group
            hit = self._check(self._forms[first - 1], data, start, end, floor)
            if hit is not None:
                return hit
            found = self._from[first].match(data, at) if first < len(self._forms) else None
        return self._check_secret(data, at)

    def _check(self, form: _Form, data: bytes, start: int, end: int, floor: int) -> Hit | None:
        # What stands before `floor` is masked already, and no context any more.
        if not form.entry.bounded and start and data[start - 1] == 0x5C and data[start] in _ESCAPED:
            start += 1  # the letter of a JSON escape such as \n is no part of the value
        if form.entry.validator == "none":
            if data[start] == 0x40:
                return None
        else:
            end = start + self._valid_length(form, data, start, end)
        if end <= start:
            return None
        if form.not_before is not None and form.not_before.search(data[max(floor, start - _LOOK_BACK) : start]):
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
        found = self._secret_at.match(data, at)
        if found is None:
            return None
        name_end = found.start(1)
        name = _NAME_END.search(data[max(0, name_end - 80) : name_end])
        if name is None or not self._keys.is_secret(name.group().decode()):
            return None
        key_quote, sign, space, quote = found.group(1), found.group(2), found.group(3), found.group(4)
        start = found.end(4)
        if quote:
            end = _closing(data, start, quote)
        else:
            end = found.end(5)
            value = data[start:end]
            if key_quote or value == self._secret.mask.encode() or not _is_secret_word(value, sign, space):
                return None
        if end <= start or data[start:end] == self._secret.mask.encode():
            return None
        return Hit(start, end, self._secret.name, self._secret.mask.encode())


def _is_secret_word(value: bytes, sign: bytes, space: bytes) -> bool:
    """Whether an unquoted value is a secret and not the next word of a sentence ("the secret: be kind")."""
    if sign == b"=" or not space or b" " in value:
        return True
    body = value.rstrip(b".?!:")
    return any(not 0x41 <= (char & 0xDF) <= 0x5A for char in body) and len(body) >= 4


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


def _latin1(expression: str) -> Any:
    """Compiled over bytes: a protobuf message is not UTF-8 throughout."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    return re2.compile(expression.encode("latin-1"), options)


def _expression(entry: PiiPattern, boundary: str, join: str, *, capture: bool = False, prefilter: bool = False) -> str:
    value = entry.prefilter if prefilter and entry.prefilter else entry.pattern
    value = f"({value})" if capture else f"(?:{value})"
    if entry.context_before:
        expression = _context(entry.context_before, join) + value
        if prefilter:  # a list under such a key: its items have the key as context, but do not stand beside it
            expression += "|" + _word_of_context(entry.context_before) + _LIST_OPENS
        return expression
    if entry.context_after:
        words = "|".join(entry.context_after)
        value += rf"[ \-]{{1,3}}(?i:{words})(?:[^A-Za-z]|$)"
    return boundary + value if entry.bounded else value


def _context(words: tuple[str, ...], join: str) -> str:
    """Words before a value: at a word's start or at a hump (homePhone), then joining words and punctuation."""
    return rf"{_word_of_context(words)}(?i:s?)(?:{join}{{0,4}}{_LINK}){{0,4}}{join}{{1,12}}"


def _word_of_context(words: tuple[str, ...]) -> str:
    humps = "|".join(word.capitalize() for word in words if word.isalpha())
    names = "|".join(words)
    whole = rf"{_WORD_START}(?i:{names})"
    return rf"(?:{whole}|[a-z](?:{humps}))" if humps else f"(?:{whole})"


def _secret_head(table: PiiTable) -> str:
    secret = table.secret_keys
    quoted = functools.partial(map, re.escape)
    anywhere, word, ends = ("|".join(quoted(w)) for w in (secret.anywhere, secret.word, secret.suffixes))
    humps = "|".join(word.capitalize() for word in secret.word if word.isalpha())
    tail = rf"(?:[._\-]?(?:(?i:{ends})|[0-9]{{1,3}}))?"
    return rf"(?:(?i:{anywhere})|{_WORD_START}(?i:{word})|[a-z](?:{humps})){tail}"


def _secret_expression(head: str, entry: PiiPattern) -> str:
    return rf"{head}({_QUOTES}){_GAP}([:=])({_GAP})({_QUOTES})({entry.pattern}|)"


class _Subject(NamedTuple):
    json: str
    proto: str


def _subject_expressions(table: PiiTable) -> _Subject:
    """Subject fields whose value is no token. RE2 has no "not followed by": the token is spelled out by char."""
    names = "|".join(map(re.escape, table.subject_fields))
    people = "|".join(name.removesuffix(".id") for name in table.subject_fields if name.endswith(".id"))
    token = [*(re.escape(char) for char in TOKEN_PREFIX), *(["0-9a-f"] * TOKEN_HEX_DIGITS)]
    not_token = _unless([*token, r'\\"'])
    as_json = rf'(?:{names})\\*"\s*:\s*(?:\\*"{not_token}|[^\\"\sn])|"(?:{people})\\*"\s*:\s*\{{'
    # KeyValue.value (0x12), its length, AnyValue.string_value (0x0a), the token's length.
    length = len(TOKEN_PREFIX) + TOKEN_HEX_DIGITS
    not_sized = _unless([rf"\x{byte:02x}" for byte in (length + 2, 0x0A, length)] + token)
    return _Subject(as_json, rf"(?:{names})(?:[^\x12\\\"]|\x12{not_sized})|(?:{people})\x12{_PROTO_LENGTH}\x32")


def _unless(classes: list[str]) -> str:
    """An expression for "something else than this sequence of character classes"."""
    expression = f"[^{classes[-1]}]"
    for char_class in reversed(classes[:-1]):
        expression = f"(?:[^{char_class}]|[{char_class}]{expression})"
    return expression
