"""A lower bound on epsilon from one training run.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023.

Of many canaries a fair coin each decides which are trained on. Whoever sees the outcome guesses which those were, and
abstains where unsure. Under (epsilon, delta) few guesses can be right; if more are, the run was not that private.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LARGEST_EPSILON = 50.0


@dataclass(frozen=True, slots=True)
class Guesses:
    """`right` of `made` guesses about `canaries` coins."""

    canaries: int
    made: int
    right: int


def guess(scores: NDArray[np.float64], included: Sequence[bool], share: float) -> Guesses:
    """Guess "in" for the highest scores and "out" for the lowest, for a share of all canaries; shapes `(canaries,)`."""
    order = np.argsort(scores)
    half = round(len(scores) * share / 2)
    coins = np.asarray(included)
    right = int((~coins[order[:half]]).sum()) + int(coins[order[-half:]].sum())
    return Guesses(len(scores), 2 * half, right)


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """The probability of so many right guesses, or more, under (epsilon, delta): at most this (Theorem 5.2 there)."""
    chance = stats.binom(guesses.made, 1.0 / (1.0 + np.exp(-epsilon)))
    tail = float(chance.sf(guesses.right - 1))
    below = np.cumsum(chance.pmf(guesses.right - np.arange(1, guesses.right + 1)))
    steepest = float((below / np.arange(1, guesses.right + 1)).max()) if guesses.right else 0.0
    return min(1.0, tail + 2.0 * guesses.canaries * delta * steepest)


def epsilon_lower_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the guesses refute with this confidence; 0 where they refute none."""
    low, high = 0.0, LARGEST_EPSILON
    if p_value(guesses, 0.0, delta) > 1.0 - confidence:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if p_value(guesses, middle, delta) < 1.0 - confidence:
            low = middle
        else:
            high = middle
    return low
