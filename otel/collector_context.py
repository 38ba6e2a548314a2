"""The parts of telemetry that the collector's statements walk over, and how OTTL writes texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GUARD: Final = "flywheel.guard"
"""Attribute that holds the guard's texts for as long as the processor works on a record."""


@dataclass(frozen=True, slots=True)
class Context:
    """A part of telemetry that OTTL can walk over.

    Args:
        name: OTTL's name of it.
        attributes: path of its attributes.
        texts: its own texts, as name and path.
        body: path of a value of any type.
        many: many come in a batch, so the guard keeps clean ones from all further statements.
        event: it is an event, or becomes one.
        also: further statements, run on each.
    """

    name: str
    attributes: str
    texts: tuple[tuple[str, str], ...] = ()
    body: str = ""
    many: bool = False
    event: bool = False
    also: tuple[str, ...] = ()

    @property
    def guard(self) -> str:
        """Where the guard's findings are kept."""
        return f'{self.attributes if self.many else self.name + ".cache"}["{GUARD}"]'

    def at(self, key: str) -> str:
        """A value of the cache."""
        return f'{self.name}.cache["{key}"]'


def quoted(text: str) -> str:
    """A string literal of OTTL."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
