"""What the judge may cost: calls in any minute, and calls and tokens a day."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

MINUTE_S = 60.0


class MinuteRate:
    """At most `limit` admissions in any sixty seconds; 0 is no limit. For use on one event loop."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._admitted: deque[float] = deque()

    def admit(self) -> float:
        """0.0 if a call may be made now, which then counts; else the seconds until one may."""
        now = self._clock()
        while self._admitted and now - self._admitted[0] >= MINUTE_S:
            self._admitted.popleft()
        if self._limit and len(self._admitted) >= self._limit:
            return max(0.001, self._admitted[0] + MINUTE_S - now)
        if self._limit:
            self._admitted.append(now)
        return 0.0


@dataclass(frozen=True, slots=True)
class BudgetState:
    """Of one day (UTC): what was used, and what there is. 0 calls or tokens a day is no limit."""

    day: str
    calls: int
    tokens: int
    calls_per_day: int
    tokens_per_day: int

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be asked before the next day."""
        return bool(
            (self.calls_per_day and self.calls >= self.calls_per_day)
            or (self.tokens_per_day and self.tokens >= self.tokens_per_day)
        )


class DailyBudget:
    """Counts calls and tokens of the day, in a file where one is given, so that a restart does not begin anew.

    Each engine has a budget of its own: of several replicas each may spend it.
    """

    def __init__(
        self,
        calls_per_day: int,
        tokens_per_day: int,
        file: Path | None = None,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._limits = calls_per_day, tokens_per_day
        self._file = file if calls_per_day or tokens_per_day else None
        self._today = today
        self._day, self._calls, self._tokens = self._read()
        self._told = ""

    @property
    def state(self) -> BudgetState:
        """As it is now; a new day begins with nothing used."""
        self._turn()
        return BudgetState(self._day, self._calls, self._tokens, *self._limits)

    def take(self, tokens: int) -> bool:
        """Count one call of so many tokens, if the budget is not used up; whether it was counted."""
        state = self.state
        if state.used_up:
            if self._told != state.day:
                self._told = state.day
                log.warning(
                    "the judge's budget of %s is used up (%d calls, %d tokens); until the next day (UTC) the local "
                    "evaluators decide alone",
                    *(state.day, state.calls, state.tokens),
                )
            return False
        self._calls += 1
        self._tokens += tokens
        self._write()
        return True

    def correct(self, estimated: int, used: int) -> None:
        """Put the tokens that a call did use in place of those that it was counted with."""
        self._turn()
        self._tokens = max(0, self._tokens + used - estimated)
        self._write()

    def _turn(self) -> None:
        day = self._date()
        if day != self._day:
            self._day, self._calls, self._tokens = day, 0, 0

    def _date(self) -> str:
        return self._today().date().isoformat()

    def _read(self) -> tuple[str, int, int]:
        if self._file is not None:
            try:
                found = json.loads(self._file.read_text(encoding="utf-8"))
                return str(found["day"]), int(found["calls"]), int(found["tokens"])
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s cannot be read (%s); the day's budget begins anew", self._file, type(error).__name__)
        return self._date(), 0, 0

    def _write(self) -> None:
        if self._file is None:
            return
        part = self._file.with_suffix(".part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(
                json.dumps({"day": self._day, "calls": self._calls, "tokens": self._tokens}), encoding="utf-8"
            )
            os.replace(part, self._file)  # noqa: PTH105 - the atomic rename
        except OSError as error:
            log.warning("%s cannot be written (%s); a restart begins the day anew", self._file, error.strerror)
