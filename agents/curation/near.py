"""Near-duplicates of training prompts among evaluation prompts, by MinHash over character shingles.

Broder, "On the resemblance and containment of documents", 1997; locality-sensitive hashing as in Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", chapter 3. Whatever the hashes find near is confirmed by the exact Jaccard
likeness, so that a pair is named or not by the texts alone; what the hashes miss (a pair at the bound itself, with
these bands, about one time in a hundred) stays in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

SHINGLE = 5
PERMUTATIONS = 128
# The search looks lower than the bound it is asked for: a false alarm costs one exact comparison, a miss a leak.
_SLACK = 0.75
_WORDS = re.compile(r"\w+")


def near_duplicates(evaluation: Mapping[str, str], training: Iterable[str], bound: float) -> set[str]:
    """The keys of `evaluation` whose text is at least `bound` (Jaccard, 0..1) like any text of `training`."""
    from datasketch import MinHashLSH  # it brings SciPy, which workers that only route do without

    known = {text: shingles(text) for text in training}
    if not evaluation or not known:
        return set()
    index = MinHashLSH(threshold=bound * _SLACK, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
    for text, pieces in known.items():
        index.insert(text, _hashes(pieces), check_duplication=False)
    found = set()
    for key, text in evaluation.items():
        pieces = shingles(text)
        if any(jaccard(pieces, known[near]) >= bound for near in index.query(_hashes(pieces))):
            found.add(key)
    return found


def shingles(text: str) -> frozenset[str]:
    """The text's runs of 5 characters, of its words in lower case joined by one blank."""
    plain = " ".join(_WORDS.findall(text.casefold()))
    return frozenset(plain[at : at + SHINGLE] for at in range(max(1, len(plain) - SHINGLE + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared pieces over all pieces; 0..1."""
    return len(one & other) / len(one | other)


def _hashes(pieces: frozenset[str]) -> Any:
    from datasketch import MinHash

    found = MinHash(num_perm=PERMUTATIONS, seed=1)
    found.update_batch([piece.encode() for piece in pieces])
    return found
