"""What can go wrong with a constitution document."""

from __future__ import annotations


class ConstitutionError(ValueError):
    """The document cannot be used; the message lists every faulty entry with its place and a remedy."""
