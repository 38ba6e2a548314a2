"""Facts as the one JSON text that every engine reads, so that all decide from the same digits.

regopy's own conversion of Python values rounds floats to six decimals (0.9499996 would pass a bound of 0.95) and
wraps integers at 64 bits, and its parser of data refuses exponents (`1e-05`). Hence a text, in fixed notation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MAX_EXACT_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader holds exactly (RFC 7493, section 2.2)."""

SMALLEST_NORMAL = 2.2250738585072014e-308
"""Smallest positive double of full precision; regopy cannot read those below."""

MAX_DEPTH = 32

_LITERALS = {None: "null", False: "false", True: "true"}
# Made once: `json.dumps` makes an encoder for every text, which cost a fifth of a decision from the cache.
_quoted = json.JSONEncoder(ensure_ascii=False).encode


class FactsError(ValueError):
    """The facts cannot be written as JSON; names the place and the type."""


def encode_input(action: str, facts: Mapping[str, Any]) -> str:
    """The policies' input document: the facts with `action` beside them.

    Raises:
        FactsError: a value is no JSON value, a key is no text, or the facts bring an `action` of their own.
    """
    if "action" in facts:
        raise FactsError("facts must not contain 'action': the action is asked for beside them; rename the fact")
    return encode({"action": action, **facts})


def encode(value: Any) -> str:
    """JSON in fixed notation, mappings in their own order.

    A number that JSON or an engine cannot hold exactly (NaN, an infinity, a subnormal, an integer beyond 2^53)
    becomes null: it proves nothing, and the policy names the fact that is missing.

    Raises:
        FactsError: a value is no JSON value, or a key is no text.
    """
    return _encode(value, "", 0)


def _encode(value: Any, place: str, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise FactsError(f"facts are nested deeper than {MAX_DEPTH} levels at {place}; flatten them")
    if isinstance(value, str):
        return _text(value, place)
    if value is None or isinstance(value, bool):
        return _LITERALS[value]
    if isinstance(value, int):
        return str(int(value)) if abs(value) <= MAX_EXACT_INTEGER else "null"
    if isinstance(value, float):
        return _float(float(value))
    if isinstance(value, Mapping):
        items = (_item(key, entry, place, depth) for key, entry in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, list | tuple):
        entries = (_encode(entry, f"{place}/{index}", depth + 1) for index, entry in enumerate(value))
        return "[" + ",".join(entries) + "]"
    raise FactsError(f"fact {place or '/'} is a {type(value).__name__}; give a JSON value")


def _item(key: Any, entry: Any, place: str, depth: int) -> str:
    if not isinstance(key, str):
        raise FactsError(f"key {key!r} at {place or '/'} is a {type(key).__name__}; keys are texts")
    return f"{_text(key, place)}:{_encode(entry, f'{place}/{key}', depth + 1)}"


def _text(value: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FactsError(f"text at {place or '/'} holds a lone surrogate; decode it properly") from error
    return _quoted(value)


def _float(value: float) -> str:
    if not math.isfinite(value) or 0.0 < abs(value) < SMALLEST_NORMAL:
        return "null"
    text = format(Decimal(repr(value)), "f")
    return text if "." in text else f"{text}.0"
