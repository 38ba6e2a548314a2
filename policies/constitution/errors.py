"""What can go wrong with a constitution document."""

from __future__ import annotations

from policies.wording import in_few_words


class ConstitutionError(ValueError):
    """The document cannot be used; the message lists faulty entries in few words, each with its place and a remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(in_few_words(message))
