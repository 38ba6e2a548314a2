"""Composition: settings, workers, stores, web, command line. Decisions about events live in `agents`."""

__version__ = "0.1.0"
