"""Varied text, seeded: words as frequent as Zipf's law has them, so that gzip finds in it what it finds in prose."""

from __future__ import annotations

import random
from itertools import accumulate
from pathlib import Path

_STEMS = (Path(__file__).parent / "stems.txt").read_text().split()
_ENDINGS = ("", "s", "ed", "ing", "er", "ers", "ation", "able", "ment", "ive", "ion", "ity", "al", "ally", "or", "ance")
_SMALL = (Path(__file__).parent / "words.txt").read_text().split()
_ZIPF_OFFSET = 2.7
"""Mandelbrot's correction of Zipf's law, for English."""


class Sentences:
    """A pool of sentences to compose texts of. Composing from the pool costs a few microseconds a text.

    Args:
        rnd: the stream that everything is drawn from.
        size: sentences in the pool; 20,000 make 1.5 MB, far beyond what gzip looks back (32 KiB).
    """

    def __init__(self, rnd: random.Random, size: int = 20_000) -> None:
        self._rnd = rnd
        long_words = [stem + ending for stem in _STEMS for ending in _ENDINGS]
        rnd.shuffle(long_words)
        words = [*_SMALL, *long_words]
        weights = list(accumulate(1.0 / (rank + _ZIPF_OFFSET) for rank in range(1, len(words) + 1)))
        self._pool = [self._sentence(words, weights) for _ in range(size)]

    def text(self, sentences: int) -> str:
        """Return so many sentences of the pool."""
        return " ".join(self._rnd.choices(self._pool, k=sentences))

    def _sentence(self, words: list[str], weights: list[float]) -> str:
        chosen = self._rnd.choices(words, cum_weights=weights, k=self._rnd.randint(7, 17))
        text = " ".join(chosen)
        return f"{text[0].upper()}{text[1:]}{self._rnd.choice('....?')}"
