"""From the table to RE2 expressions: what stands around a value, which the entries themselves do not say."""

from __future__ import annotations

import functools
import re
from typing import Final, NamedTuple

from otel.subject import TOKEN_HEX_DIGITS, TOKEN_PREFIX
from otel.table import PiiPattern, PiiTable

# A boundary before a value: one character that no longer word or number could hold, or a JSON escape.
BOUNDARY: Final = r"(?:[^0-9A-Za-z_.\-+]|\\[nrtbf]|\\u00[01][0-9A-Fa-f])"
# In protobuf also a field's tag (those of the string fields of a log request, but entities') and its length.
_PROTO_LENGTH: Final = r"(?:[\x80-\xff]{0,3}[\x00-\x7f])"
PROTO_BOUNDARY: Final = rf"(?:{BOUNDARY}|[\x0a\x12\x1a\x3a\x62]{_PROTO_LENGTH})"
# Between a word of context and the value: joining words and punctuation.
JOIN: Final = r"""(?:[\s:#=,.()"'_?\x01\-]|\\+(?:[nrtf"]|u0001))"""
PROTO_JOIN: Final = rf"(?:{JOIN}|\x12{_PROTO_LENGTH}\x0a{_PROTO_LENGTH})"
_LINK: Final = r"(?i:numbers?|nos?|nr|num|is|was|are|at|on|to|via|me|us|my|our|your|the|registered)"
_LIST_OPENS: Final = rf"""[0-9A-Za-z_.\-]{{0,16}}(?:\\*["']\s?:\s?\[|\x12{_PROTO_LENGTH}\x2a)"""
# Where a word starts, and the space around = and :, escaped as JSON does or not.
_WORD_START: Final = r"(?:[^A-Za-z]|\\[nrtbf]|\\u00[01][0-9A-Fa-f])"
GAP: Final = r"(?:\s|\\+[nrt]){0,2}"
QUOTES: Final = r"""["'\\]{0,20}"""
# A printable ASCII character written as \u0040 in JSON, which would hide an address from the patterns.
ESCAPED_ASCII: Final = r"\\u00[2-7][0-9A-Fa-f]"


def expression(entry: PiiPattern, boundary: str, join: str, *, capture: bool = False, prefilter: bool = False) -> str:
    """An entry's pattern with what must stand around it; the value is the one group if `capture`.

    `boundary` and `join` say what stands before a value and between it and a word of context in this kind of data;
    with `prefilter` the expression may match more than the entry means, never less.
    """
    value = entry.prefilter if prefilter and entry.prefilter else entry.pattern
    value = f"({value})" if capture else f"(?:{value})"
    if entry.context_before:
        value = _context(entry.context_before, join) + value
        if prefilter:  # a list under such a key: its items have the key as context, but do not stand beside it
            value += "|" + _word_of_context(entry.context_before) + _LIST_OPENS
        return value
    if entry.context_after:
        words = "|".join(entry.context_after)
        # Not "1048576 work items": the word goes with the number and not with what follows, a mask included.
        value += rf"[ \-]{{1,3}}(?i:{words})(?: *(?:[^A-Za-z \[]|$))"
    return boundary + value if entry.bounded else value


def _context(words: tuple[str, ...], join: str) -> str:
    """Words before a value: at a word's start or at a hump (homePhone), then joining words and punctuation."""
    return rf"{_word_of_context(words)}(?i:s?)(?:{join}{{0,4}}{_LINK}){{0,4}}{join}{{1,12}}"


def _word_of_context(words: tuple[str, ...]) -> str:
    humps = "|".join(word.capitalize() for word in words if word.isalpha())
    names = "|".join(words)
    whole = rf"{_WORD_START}(?i:{names})"
    return rf"(?:{whole}|[a-z](?:{humps}))" if humps else f"(?:{whole})"


def secret_head(table: PiiTable) -> str:
    """The end of a name that says secret, in running text as in a key."""
    secret = table.secret_keys
    quoted = functools.partial(map, re.escape)
    anywhere, word, ends = ("|".join(quoted(w)) for w in (secret.anywhere, secret.word, secret.suffixes))
    humps = "|".join(word.capitalize() for word in secret.word if word.isalpha())
    tail = rf"(?:[._\-]?(?:(?i:{ends})|[0-9]{{1,3}}))?"
    return rf"(?:(?i:{anywhere})|{_WORD_START}(?i:{word})|[a-z](?:{humps})){tail}"


def secret_expression(head: str, entry: PiiPattern) -> str:
    """A name, = or :, and a value. Groups: quotes after the name, sign, space, quotes before the value, value."""
    return rf"{head}({QUOTES}){GAP}([:=])({GAP})({QUOTES})({entry.pattern}|)"


class SubjectExpressions(NamedTuple):
    """Subject fields without a token, in JSON and in protobuf."""

    json: str
    proto: str


def subject_expressions(table: PiiTable) -> SubjectExpressions:
    """Subject fields whose value is no token. RE2 has no "not followed by": the token is spelled out by char."""
    names = "|".join(map(re.escape, table.subject_fields))
    people = "|".join(name.removesuffix(".id") for name in table.subject_fields if name.endswith(".id"))
    token = [*(re.escape(char) for char in TOKEN_PREFIX), *(["0-9a-f"] * TOKEN_HEX_DIGITS)]
    not_token = _unless([*token, r'\\"'])
    as_json = rf'(?:{names})\\*"\s*:\s*(?:\\*"{not_token}|[^\\"\sn])|"(?:{people})\\*"\s*:\s*\{{'
    # KeyValue.value (0x12), its length, AnyValue.string_value (0x0a), the token's length.
    length = len(TOKEN_PREFIX) + TOKEN_HEX_DIGITS
    not_sized = _unless([rf"\x{byte:02x}" for byte in (length + 2, 0x0A, length)] + token)
    return SubjectExpressions(
        as_json, rf"(?:{names})(?:[^\x12\\\"]|\x12{not_sized})|(?:{people})\x12{_PROTO_LENGTH}\x32"
    )


def _unless(classes: list[str]) -> str:
    """An expression for "something else than this sequence of character classes"."""
    expression = f"[^{classes[-1]}]"
    for char_class in reversed(classes[:-1]):
        expression = f"(?:[^{char_class}]|[{char_class}]{expression})"
    return expression
