"""The engine's heads on vectors whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from policies.engine.kernel import RIDGE, WIDTH, KernelHead, held_out_logits, softmax

RANDOM = np.random.default_rng(3)


def _unit(count: int, width: int = 6) -> np.ndarray:
    vectors = RANDOM.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_head_solves_its_system() -> None:
    """Against the definition, written out: ridge regression on indicators, classes weighing alike, bias free."""
    vectors, labels = _unit(30), RANDOM.permutation(np.repeat([0, 1, 2], (5, 10, 15)))
    head = KernelHead.fit(vectors, labels, 2.0)
    likeness = np.exp(-WIDTH * np.square(vectors[:, None, :].astype(float) - vectors[None, :, :]).sum(axis=2))
    scores = likeness @ head.weights + head.bias
    weight = 30 / (3 * np.bincount(labels)[labels])
    # Where the gradient is nought: weights are the weighted residuals over the ridge, and sum to nought.
    residuals = weight[:, None] * ((labels[:, None] == np.arange(3)) - scores)
    np.testing.assert_allclose(head.weights * RIDGE, residuals, atol=1e-5)
    np.testing.assert_allclose(head.weights.sum(axis=0), 0.0, atol=1e-8)
    np.testing.assert_allclose(head.logits(vectors), 2.0 * scores, atol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-6)


def test_it_draws_a_line_that_is_not_straight() -> None:
    """Inside against outside of a ring, which no linear head can tell apart."""
    angles = RANDOM.uniform(0, 2 * np.pi, 400)
    radii = np.where(np.arange(400) < 200, 1.0, 4.0)
    vectors = (radii * np.stack([np.cos(angles), np.sin(angles)])).T.astype(np.float32)
    labels = (np.arange(400) >= 200).astype(np.int64)
    logits = held_out_logits(vectors, labels, 1.0)
    assert ((logits[:, 1] > logits[:, 0]) == (labels == 1)).mean() > 0.99


def test_held_out_scores_do_not_know_the_label() -> None:
    """With labels that mean nothing, held-out scores are no better than chance, although fitted ones are."""
    vectors, labels = _unit(400, 40), np.arange(400) % 2
    fitted = KernelHead.fit(vectors, labels, 1.0).log_odds(vectors)
    held_out = held_out_logits(vectors, labels, 1.0)
    assert ((fitted > 0) == (labels == 1)).mean() > 0.8
    assert 0.4 < ((held_out[:, 1] > held_out[:, 0]) == (labels == 1)).mean() < 0.6


def test_fitting_is_deterministic_and_shares_sum_to_one() -> None:
    vectors, labels = _unit(40), np.arange(40) % 4
    np.testing.assert_array_equal(held_out_logits(vectors, labels, 3.0), held_out_logits(vectors, labels, 3.0))
    shares = KernelHead.fit(vectors, labels, 500.0).probabilities(_unit(7))
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(softmax(np.array([[1e4, -1e4]])), [[1.0, 0.0]])


def test_too_few_exemplars_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 0, 1\]; a head needs some of every class"):
        KernelHead.fit(_unit(3), np.array([0, 0, 2]), 1.0)
    with pytest.raises(ValueError, match=r"\[2, 1\]; cross-validation needs 2 or more"):
        held_out_logits(_unit(3), np.array([0, 0, 1]), 1.0)
