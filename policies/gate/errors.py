"""What can go wrong with a bundle."""

from __future__ import annotations

from policies.wording import in_few_words


class BundleError(ValueError):
    """A bundle that cannot be loaded; says which file, key or case and what to do, and repeats none at length."""

    def __init__(self, message: str) -> None:
        super().__init__(in_few_words(message))
