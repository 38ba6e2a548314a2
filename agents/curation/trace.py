"""Following single events through curation. What makes spans stands in `app.telemetry`; here is what curation asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from agents.routing.message import InboundMessage


class Followed(Protocol):
    """A followed record."""

    links: str
    """What an example carries on: the contexts of the application's span and of this one, see `Lineage`."""

    def end(self) -> None:
        """The record is stored."""


class CurationTrace(Protocol):
    """Decides what is followed, by the rule of the router."""

    def follow(self, message: InboundMessage, event: Mapping[str, Any]) -> Followed | None:
        """Begin a record's span, where it is followed."""


class Untraced:
    """Follows nothing."""

    def follow(self, message: InboundMessage, event: Mapping[str, Any]) -> Followed | None:  # noqa: ARG002
        """Nothing."""
        return None
