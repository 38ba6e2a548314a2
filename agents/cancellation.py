"""Cancellation that a library has swallowed.

Python 3.11's `asyncio.wait_for` returns normally where it is cancelled just as what it waits for is done, and redis-py
awaits every send through it: of tasks cancelled in the middle of a command, most live on as if nothing had been asked
of them. A loop around such calls never ends unless it looks for itself.
"""

from __future__ import annotations

import asyncio


def heed_cancellation() -> None:
    """Raise `asyncio.CancelledError` if the running task was asked to end, and something has kept that to itself.

    Call it after awaiting what may swallow a cancellation.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
