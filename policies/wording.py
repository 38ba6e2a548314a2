"""How much of what others wrote a message repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_OF_A_LINE = 1000
MOST_FAULTS, MOST_OF_A_FAULT = 10, 300
"""Of one request, that are told; characters of one."""
_END = 4
"""A quarter of what is kept is the end: that is where a message says what to do."""


def in_few_words(message: str, most: int = MOST_OF_A_LINE) -> str:
    """A message whose lines have at most about `most` characters: of a longer one, the middle is left out."""
    return "\n".join(_cut(line, most) for line in message.split("\n"))


def faults_in_few_words(found: Sequence[Any]) -> str:
    """Pydantic's errors in one line: of the first ten the place and what is wrong, never the value.

    A place is cut as well: in a value that nests it is as long as what was sent is deep.
    """
    told = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in found[:MOST_FAULTS])
    return "; ".join(in_few_words(fault, MOST_OF_A_FAULT) for fault in told)


def _cut(line: str, most: int) -> str:
    if len(line) <= most:
        return line
    end = most // _END
    return f"{line[: most - end]}... ({len(line) - most} characters left out) ...{line[-end:]}"
