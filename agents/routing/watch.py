"""Notices a stream that is nearly all dead letters, so that a worker stops instead of draining a topic into another.

A producer that sends a new format, or a router that is older than its producers, would otherwise turn every event
into a dead letter, at line rate, and somebody would have to replay them all.
"""

from __future__ import annotations

from collections import deque

from agents.routing.limits import DeadLetterLimits
from agents.routing.message import Halt, InboundMessage


class TooManyDeadLetters(Halt):
    """The bounds on dead letters are exceeded. Names the figure, the bound, the place and what to do."""


class DeadLetterWatch:
    """Counts dead letters in a row on each partition, and their share of the last records.

    Args:
        limits: the bounds; may be replaced between batches.
    """

    def __init__(self, limits: DeadLetterLimits | None = None) -> None:
        self.limits = limits or DeadLetterLimits()
        self._runs: dict[tuple[str, int], int] = {}
        self._window: deque[tuple[int, int]] = deque()
        self._records = 0
        self._dead = 0
        self._place = ""

    @property
    def runs(self) -> bool:
        """Whether some partition's last message was all dead letters: then good ones have to be told as well."""
        return bool(self._runs)

    def saw(self, message: InboundMessage, records: int, dead: int) -> None:
        """Take note of a message: how many records it had, and how many of those are dead letters.

        A message with one good record ends a run: what the run tells of is a stream that nobody can read.
        """
        place = (message.topic, message.partition)
        if dead < records:
            self._runs.pop(place, None)
        elif dead:
            self._runs[place] = self._runs.get(place, 0) + dead
        if dead:
            self._place = f"{message.topic}:{message.partition}:{message.offset}"

    def check(self, records: int, dead: int) -> None:
        """Take note of a batch as a whole, and hold what was seen to the bounds.

        Raises:
            TooManyDeadLetters: a bound is exceeded; publish nothing of the batch.
        """
        limits = self.limits
        self._window.append((records, dead))
        self._records += records
        self._dead += dead
        while self._records - self._window[0][0] >= limits.window:
            gone, gone_dead = self._window.popleft()
            self._records -= gone
            self._dead -= gone_dead
        if not self._dead:
            return
        run = max(self._runs.values(), default=0)
        if limits.max_run and run > limits.max_run:
            raise TooManyDeadLetters(
                f"{run} dead letters in a row up to {self._place}, over dead_letters.max_run={limits.max_run}. "
                f"{_REMEDY}"
            )
        if self._records >= limits.window and self._dead > limits.max_share * self._records:
            share = self._dead / self._records
            raise TooManyDeadLetters(
                f"{share:.1%} of the last {self._records} records up to {self._place} are dead letters, over "
                f"dead_letters.max_share={limits.max_share}. {_REMEDY}"
            )


_REMEDY = (
    "Nothing of this batch was taken. See `flywheel dlq ls` for the reasons; correct the producer, or upgrade this "
    "worker, or raise the bound (`flywheel routing set`), then start it again"
)
