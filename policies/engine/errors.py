"""What can go wrong in the engine."""

from __future__ import annotations


class EngineError(Exception):
    """Base of the engine's own errors."""


class EncoderUnavailableError(EngineError):
    """The sentence encoder cannot be loaded; the message says which part is missing and how to get it."""


class EngineBusyError(EngineError):
    """More texts are waiting than the engine accepts; the client should try again later."""


class LimitError(Exception):
    """A request is over one of the engine's limits."""


class UnfitSettings(ValueError):
    """The settings name what the constitution in force has not got."""
