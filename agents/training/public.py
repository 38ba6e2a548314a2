"""The constitution's public benign prompts, for training and for evaluation."""

from __future__ import annotations

import hashlib

from policies.constitution import BenignPair, Constitution


def public_pairs(constitution: Constitution, evaluation_share: float, *, for_training: bool) -> list[BenignPair]:
    """The constitution's public benign prompts for training, or those kept for evaluation.

    They are told apart by a hash of the prompt alone, and stand in the order of that hash, so that taking the first
    few is not taking one topic.
    """
    ranked = sorted((hashlib.sha256(pair.prompt.encode()).digest(), pair) for pair in constitution.benign)
    limit = int(evaluation_share * 2**32)
    return [pair for rank, pair in ranked if (int.from_bytes(rank[:4], "big") >= limit) == for_training]
