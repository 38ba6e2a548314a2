"""Consistent probability sampling: every worker, in every run, keeps the same events.

Source: OpenTelemetry, "TraceState: Probability Sampling" (OTEP 235): 56 bits of randomness R, from the explicit `rv`
value of the `ot` trace state if there is one, else the least significant 56 bits of the trace id; an event is kept if
R >= T with the rejection threshold T = (1 - rate) * 2**56. Events without a trace take R from their identity.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from agents.routing.message import Event

_BITS = 56
_SPACE = 1 << _BITS
_MASK = _SPACE - 1
_TRACE_ID = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_RANDOM_VALUE = re.compile(r"(?:^|[,\s])ot=(?:[^,]*;)?rv:([0-9a-f]{14})(?:[;,\s]|$)")


@lru_cache(maxsize=64)
def threshold(rate: float) -> int:
    """Return the rejection threshold of a sample rate in 0..1; a rate of 0 rejects everything."""
    return round((1.0 - rate) * _SPACE)


def keep(randomness: int, rate: float) -> bool:
    """Tell whether an event with this 56-bit randomness is kept at this rate."""
    return randomness >= threshold(rate)


def trace_id(event: Event) -> str | None:
    """Return the event's trace id if it is a valid one (32 hexadecimal digits, not all zero)."""
    value = event.get("trace_id")
    if isinstance(value, str) and _TRACE_ID.fullmatch(value) and value.strip("0"):
        return value
    return None


def trace_randomness(event: Event) -> int | None:
    """Return the 56 bits that the event's trace carries, or None if it has no trace."""
    explicit = _random_value(event.get("tracestate"))
    if explicit is not None:
        return explicit
    trace = trace_id(event)
    return None if trace is None else int(trace[-_BITS // 4 :], 16)


def digest_randomness(digest: bytes) -> int:
    """Return the low 56 bits of an identity's digest."""
    return int.from_bytes(digest[-8:], "big") & _MASK


def _random_value(tracestate: Any) -> int | None:
    if not isinstance(tracestate, str) or "rv:" not in tracestate:
        return None
    found = _RANDOM_VALUE.search(tracestate)
    return int(found[1], 16) if found else None
