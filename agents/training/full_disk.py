"""A disk that is full: told from other errors, and waited for.

What a job has computed is dear, and of private training each step was paid for with budget: so it is kept in memory
until there is room for it, instead of failing the cycle, or taking the step again for more budget.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

logger = logging.getLogger(__name__)

Written = TypeVar("Written")

DISK_FULL: Final = "DiskFull"
"""The kind of a job's failure for want of space; such a stage is tried again for as long as it lasts."""
REMEDY: Final = "no space is left on the disk of training.artifacts, or another that the job writes to: free some"
LOOK_AGAIN_S = 2.0
_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# safetensors tells of an error of the system by its text alone.
_WORDS: Final = tuple(f"(os error {number})" for number in _ERRORS)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or a user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _ERRORS
    return any(words in str(error) for words in _WORDS)


def when_there_is_room(write: Callable[[], Written], on_wait: Callable[[], None]) -> Written:
    """What `write` returns, which is called again until the disk has room; `on_wait` runs before each wait.

    `write` must leave nothing half-written behind. Any other error of it is passed on.
    """
    while True:
        try:
            return write()
        except Exception as error:
            if not is_disk_full(error):
                raise
            logger.error("%s; waiting for it", REMEDY)
        on_wait()
        time.sleep(LOOK_AGAIN_S)
