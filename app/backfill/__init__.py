"""Backfill: history routed through the same pipeline as what comes in now, from a topic or from a file."""
