"""What a fault is, and what several of them have in common."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from app.embedded.process import ManagedProcess
from chaos.link import Link
from chaos.site import Site

FROZEN_S = (8.0, 11.0)
"""Longer than the consumers' session, and the training worker's lease, of 6 s."""
SILENT_S = (11.0, 14.0)
"""Longer than clients of the engines wait, 10 s."""
AWAY_S = (2.0, 6.0)
Act = Callable[[Site, random.Random], None]
Need = Literal["three brokers", "postgresql", "collector", "own disk", "libfaketime"]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Args:
        name: as the table tells it.
        act: does it, and ends it; returns with all parts running again.
        repeats: batches in flight may come again, with the same event ids.
        forgets: claims are lost, so a later telling of an event may be routed as well.
        needs: what it cannot do without: a topology, which the seed then has, or something of the machine's.
    """

    name: str
    act: Act
    repeats: bool = False
    forgets: bool = False
    needs: Need | None = None


def away(drawn: random.Random) -> None:
    """Let it last a while."""
    time.sleep(drawn.uniform(*AWAY_S))


def freeze(process: ManagedProcess | None, seconds: float) -> None:
    """Stop a process where it stands for so long."""
    assert process is not None
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def frozen_s(drawn: random.Random) -> float:
    """For how long something is frozen."""
    return drawn.uniform(*FROZEN_S)


def slow(links: list[Link], drawn: random.Random, most_s: float) -> None:
    """Hold back what goes over the links for a while."""
    for link in links:
        link.delay_s = drawn.uniform(most_s / 8, most_s)
    away(drawn)
    for link in links:
        link.delay_s = 0.0


def cut(links: list[Link], drawn: random.Random) -> None:
    """Break connections a few times, then have none for a while."""
    for _ in range(drawn.randint(1, 5)):
        for link in links:
            link.cut()
        time.sleep(drawn.uniform(0.05, 0.5))
    with unreachable(links):
        away(drawn)


@contextmanager
def unreachable(links: list[Link]) -> Iterator[None]:
    """Have no connection over the links within the block."""
    for link in links:
        link.down = True
        link.cut()
    yield
    for link in links:
        link.down = False
