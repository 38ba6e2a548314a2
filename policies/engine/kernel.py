"""The engine's heads: kernel machines, each fitted in closed form.

A head scores a vector by its likeness to every exemplar, s_c(x) = sum_i w_ic k(x_i, x) + b_c with the Gaussian kernel
k(x, z) = exp(-WIDTH |x - z|^2), so that it draws a curved line around what the exemplars show, where a linear head can
draw only a straight one. The weights are those of ridge regression on the classes' indicators, classes weighing alike
(regularised least squares: Rifkin and Klautau, "In Defense of One-Vs-All Classification", JMLR 5, 2004).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.engine.embedding import Vectors

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

FOLDS = 5
# From cross-validation on the shipped exemplars; both lie on a plateau (0.1 to 0.3, and 0.02 to 0.2).
WIDTH = 0.15
RIDGE = 0.1


@dataclass(frozen=True, slots=True)
class KernelHead:
    """Exemplars' vectors (n, width), weights (n, classes) and bias (classes,).

    Scores are estimates of the classes' indicators and sum to 1 over the classes; `sharpness` turns them into
    log-probabilities.
    """

    centres: Vectors
    weights: Array
    bias: Array
    sharpness: float

    @classmethod
    def fit(cls, vectors: Vectors, labels: Labels, sharpness: float) -> KernelHead:
        """Fit to labels 0..classes-1; deterministic. Raises ValueError where a class has no exemplar."""
        counts = np.bincount(labels)
        if counts.min() == 0:
            raise ValueError(f"exemplars a class: {counts.tolist()}; a head needs some of every class")
        system = _likeness(vectors, vectors)
        system[np.diag_indices(len(labels))] += RIDGE * len(counts) * counts[labels] / len(labels)
        indicators = (labels[:, None] == np.arange(len(counts))).astype(np.float64)
        solved = np.linalg.solve(system, np.column_stack([indicators, np.ones(len(labels))]))
        # The bias is not penalised: the weights of each class have to sum to 0.
        bias = solved[:, :-1].sum(axis=0) / solved[:, -1].sum()
        return cls(vectors, solved[:, :-1] - solved[:, -1:] * bias, bias, sharpness)

    def logits(self, vectors: Vectors) -> Array:
        """Unnormalised log-probabilities; shape (n, classes)."""
        scores: Array = self.sharpness * (_likeness(vectors, self.centres) @ self.weights + self.bias)
        return scores

    def log_odds(self, vectors: Vectors) -> Array:
        """Log-odds of the second of two classes; shape (n,)."""
        logits = self.logits(vectors)
        return logits[:, 1] - logits[:, 0]

    def probabilities(self, vectors: Vectors) -> Array:
        """Softmax over the classes; shape (n, classes), rows sum to 1."""
        return softmax(self.logits(vectors))


def held_out_logits(vectors: Vectors, labels: Labels, sharpness: float) -> Array:
    """Logits of every exemplar by a head fitted on the other folds; folds are stratified and fixed."""
    folds = _folds(labels)
    logits = np.empty((len(labels), int(labels.max()) + 1))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        logits[out] = KernelHead.fit(vectors[~out], labels[~out], sharpness).logits(vectors[out])
    return logits


def softmax(logits: Array) -> Array:
    """Rows of logits as shares that sum to 1."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = odds / odds.sum(axis=1, keepdims=True)
    return shares


def one_thread() -> AbstractContextManager[Any]:
    """Products this small lose more to threads that wait for each other than they gain where cores are shared."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def _likeness(vectors: Vectors, centres: Vectors) -> Array:
    """The kernel between all vectors and all centres; shape (n, centres)."""
    squares = np.square(vectors).sum(axis=1)[:, None] + np.square(centres).sum(axis=1)
    distances = np.maximum(squares - 2.0 * (vectors @ centres.T), 0.0)
    kernel: Array = np.exp(-WIDTH * distances.astype(np.float64))
    return kernel


def _folds(labels: Labels) -> Labels:
    """A fold for each exemplar: each class is shuffled once, with a fixed seed, and dealt out in turn."""
    count = min(FOLDS, int(np.bincount(labels).min()))
    if count < 2:
        raise ValueError(f"exemplars a class: {np.bincount(labels).tolist()}; cross-validation needs 2 or more of each")
    random = np.random.default_rng(0)
    folds = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for label in range(int(labels.max()) + 1):
        members = random.permutation(np.flatnonzero(labels == label))
        folds[members] = (dealt + np.arange(len(members))) % count
        dealt += len(members)
    return folds
