"""What can go wrong with a bundle."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle that cannot be loaded; says which file, key or case and what to do."""
