"""Which trace the work at hand belongs to, so that its log lines can name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CURRENT: ContextVar[str | None] = ContextVar("flywheel_traceparent", default=None)


def current() -> str | None:
    """The `traceparent` of the work at hand, or None. Threads by `asyncio.to_thread` and tasks inherit it."""
    return _CURRENT.get()


def begin(traceparent: str | None) -> None:
    """From here on this process works for a trace: a job, for the cycle's."""
    _CURRENT.set(traceparent)


@contextmanager
def correlated(traceparent: str) -> Iterator[None]:
    """Work for a trace within the block."""
    token = _CURRENT.set(traceparent)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def log_fields() -> dict[str, str]:
    """`trace_id` and `span_id` for a log line; empty without a trace."""
    traceparent = _CURRENT.get()
    if traceparent is None:
        return {}
    _, trace_id, span_id, _ = traceparent.split("-")
    return {"trace_id": trace_id, "span_id": span_id}
