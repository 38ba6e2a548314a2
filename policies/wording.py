"""How much of what others wrote a message repeats."""

from __future__ import annotations

MOST_OF_A_LINE = 1000
_END = 4
"""A quarter of what is kept is the end: that is where a message says what to do."""


def in_few_words(message: str, most: int = MOST_OF_A_LINE) -> str:
    """A message whose lines have at most about `most` characters: of a longer one, the middle is left out."""
    return "\n".join(_cut(line, most) for line in message.split("\n"))


def _cut(line: str, most: int) -> str:
    if len(line) <= most:
        return line
    end = most // _END
    return f"{line[: most - end]}... ({len(line) - most} characters left out) ...{line[-end:]}"
