"""The bounded list of recent decisions that the monitoring agent polls."""

from __future__ import annotations

import time
from collections import deque

from pydantic import JsonValue

from models.evaluation_api import RecentEvaluation

_LABEL_CHARS = 128


class RecentEvaluations:
    """A ring of decisions under increasing numbers; the number of the last one read is the reader's cursor.

    Numbers start at the microsecond of creation, so that they go on rising over a restart and a reader's old
    cursor never hides new decisions.
    """

    def __init__(self, capacity: int) -> None:
        self._ring: deque[tuple[int, RecentEvaluation]] = deque(maxlen=capacity)
        self._last = time.time_ns() // 1000

    def add(self, decision_id: str, context: dict[str, JsonValue], score: float, allow: bool) -> None:
        """Note a decision. Labels come from the context; what is no text, or empty, counts as unknown."""
        self._last += 1
        entry = RecentEvaluation(
            id=decision_id,
            model_id=_label(context.get("model_id")),
            type=_label(context.get("type")),
            model_type=_label(context.get("model_type")),
            risk_level=_label(context.get("risk_level")),
            compliance_score=score,
            allow=allow,
        )
        self._ring.append((self._last, entry))

    def after(self, cursor: int) -> tuple[list[RecentEvaluation], int]:
        """Decisions with a number above the cursor, oldest first, and the cursor to ask with next time.

        A cursor ahead of the newest number (the clock was set back) starts again from the oldest.
        """
        if cursor > self._last:
            cursor = 0
        return [entry for number, entry in self._ring if number > cursor], self._last


def _label(value: JsonValue) -> str:
    if not isinstance(value, str) or not value.strip():
        return "unknown"
    # JSON may carry half of a surrogate pair, which no reply could be encoded with.
    return value.strip()[:_LABEL_CHARS].encode("utf-8", "replace").decode()
