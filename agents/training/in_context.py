"""Examples of good answers that go before a prompt as earlier turns: what the base model reaches untrained."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from itertools import chain, zip_longest

from agents.training.public import public_pairs
from policies.constitution import Constitution

_SENTENCE = re.compile(r".*?[.!?](?=\s|$)")


def earlier_turns(
    constitution: Constitution, evaluation_share: float, count: int, evaluated: Collection[str]
) -> list[dict[str, str]]:
    """`count` examples as `{"role", "content"}` turns, all of the constitution's public text.

    By turns a request that a principle forbids, turned down in the first sentence of the principle's opening, and a
    harmless one with its good answer: shown the one kind only, a model refuses all or nothing. The harmless pairs are
    of the training share, and nothing that is in `evaluated` is shown. Fewer come back where there are no more.
    """
    asked = {_normal(prompt) for prompt in evaluated}
    refused = [
        (principle.exemplars.violating[0], _first_sentence(principle.revision_opening))
        for principle in sorted(constitution.principles, key=lambda principle: _rank(principle.id))
    ]
    answered = [(pair.prompt, pair.answer) for pair in public_pairs(constitution, evaluation_share, for_training=True)]
    dealt = chain.from_iterable(zip_longest(*([pair for pair in kind if _normal(pair[0]) not in asked]
                                              for kind in (refused, answered))))  # fmt: skip
    chosen = [pair for pair in dealt if pair is not None][:count]
    return [
        turn
        for prompt, answer in chosen
        for turn in ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    ]


def _first_sentence(opening: str) -> str:
    """An opening as an answer by itself: what would follow "Instead," is the student's to say."""
    found = _SENTENCE.match(opening)
    return found.group() if found else opening


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
