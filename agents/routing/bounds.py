"""Bounds on what a producer may send, and the checks that hold records to them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from agents.routing.message import Reason, Unroutable


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What the decoder accepts. Sizes in bytes; depth counts the event itself as 1; strings in characters."""

    max_message_bytes: int = 32 * 1024 * 1024
    max_decompressed_bytes: int = 32 * 1024 * 1024
    max_records: int = 20_000
    max_depth: int = 32
    max_string_chars: int = 1024 * 1024

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value < 1:
                raise ValueError(f"{item.name} is {value}; a bound must be at least 1")


def opens(text: str) -> int:
    """Count brackets that open in JSON text: never less than its nesting depth, and counted at C speed."""
    return text.count("{") + text.count("[")


def check_tree(value: Any, limits: DecodeLimits) -> None:
    """Hold a decoded value to the depth and string bounds.

    Raises:
        Unroutable: a string is longer, or the nesting deeper, than `limits` allow.
    """
    level: list[Any] = [value]
    depth = 0
    while level:
        depth += 1
        below: list[Any] = []
        for node in level:
            if type(node) is dict:
                below.extend(node.values())
                _check_keys(node, limits)
            elif type(node) is list:
                below.extend(node)
            elif type(node) is str and len(node) > limits.max_string_chars:
                raise Unroutable(
                    Reason.STRING_TOO_LONG, f"a string of {len(node)} characters, over {limits.max_string_chars}"
                )
        # Only containers add depth: a level of scalars below the deepest container is not one more.
        if depth > limits.max_depth and any(type(node) in (dict, list) for node in level):
            raise Unroutable(Reason.NESTING_TOO_DEEP, f"nested deeper than {limits.max_depth}")
        level = below


def _check_keys(node: dict[str, Any], limits: DecodeLimits) -> None:
    for key in node:
        if len(key) > limits.max_string_chars:
            raise Unroutable(Reason.STRING_TOO_LONG, f"a key of {len(key)} characters, over {limits.max_string_chars}")
