"""What an attacker can tell from a trained adapter stays below the stated epsilon; without noise it does not.

The attacker is a strong one: it knows all canaries, the initial weights and the plan, sees the final weights, and
solves for how much of each canary's clipped gradient is in them. Only the coins and the keystreams are hidden from it.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("scipy.stats")

import torch
from numpy.typing import NDArray
from privacy_audit import Guesses, epsilon_lower_bound, guess, p_value
from transformers import LlamaConfig, LlamaForCausalLM

from agents.training.ml.accounting import solve_noise_multiplier
from agents.training.ml.dp import PrivateTrainer
from agents.training.ml.lora import LoraSpec, attach_adapter
from agents.training.ml.loss import TrainExample, collate, per_example_loss
from agents.training.ml.plan import DpPlan

pytestmark = pytest.mark.torch

CANARIES, STATED, DELTA = 600, 2.0, 1e-5
RATE, STEPS = 0.5, 8
GUESSED = 0.5
PAD = 0
RIDGE = 0.1
"""Directions that hardly differ between canaries would carry more noise than they tell."""


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    return attach_adapter(LlamaForCausalLM(config), LoraSpec(dropout=0.0), seed=1)


def canaries() -> list[TrainExample]:
    """Random texts: nothing else in the data speaks for or against them."""
    rng = np.random.default_rng(7)
    return [TrainExample(tuple(rng.integers(1, 256, 6)), tuple(rng.integers(1, 256, 6))) for _ in range(CANARIES)]


def clipped_gradients(examples: list[TrainExample]) -> NDArray[np.float64]:
    """Each canary's clipped gradient at the initial weights; `(canaries, weights)`."""
    fresh = model()
    trained = [weight for name, weight in fresh.named_parameters() if "lora_B" in name]
    rows = []
    for example in examples:
        loss = per_example_loss(fresh, collate([example], PAD, torch.device("cpu"))).sum()
        row = torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained)]).double().numpy()
        rows.append(row / max(1.0, float(np.linalg.norm(row))))
    return np.stack(rows)


def attacked(noise: float, examples: list[TrainExample], gradients: NDArray[np.float64]) -> Guesses:
    """Train on a random half of the canaries and guess which they were."""
    included = [secrets.randbelow(2) == 1 for _ in examples]
    plan = DpPlan(
        sample_rate=RATE,
        steps=STEPS,
        noise_multiplier=noise,
        delta=DELTA,
        micro_batch=64,
        # So small that the gradients stay those of the initial weights: the most that an attacker could wish for.
        learning_rate=1e-3,
        schedule="constant",
        optimizer="sgd",
        momentum=0.0,
    )
    victim = model()
    trainer = PrivateTrainer(
        victim, [e for e, chosen in zip(examples, included, strict=True) if chosen], plan, pad_id=PAD
    )
    while not trainer.finished:
        trainer.step()
    final = [weight for name, weight in victim.named_parameters() if "lora_B" in name]
    # B begins at zero: what is there was moved there.
    moved = -torch.cat([weight.detach().flatten() for weight in final]).double().numpy()
    overlap = gradients @ gradients.T
    scores = np.linalg.solve(overlap + RIDGE * np.trace(overlap) / CANARIES * np.eye(CANARIES), gradients @ moved)
    return guess(scores, included, GUESSED)


def test_the_bound_stays_below_what_is_stated_and_rises_above_it_without_noise() -> None:
    examples = canaries()
    gradients = clipped_gradients(examples)
    noise = solve_noise_multiplier([], RATE, STEPS, STATED, DELTA)
    private = attacked(noise, examples, gradients)
    bare = attacked(0.0, examples, gradients)
    print(f"of {private.made} guesses {private.right} were right with noise {noise:.2f}, {bare.right} without any")
    assert epsilon_lower_bound(private, DELTA) <= STATED
    # So the attacker is good enough, and the test can fail.
    assert epsilon_lower_bound(bare, DELTA) > 1.5 * STATED


def test_a_coin_toss_refutes_nothing_and_certainty_everything() -> None:
    assert epsilon_lower_bound(Guesses(500, 500, 250), DELTA) == 0.0
    # All of n right refutes every epsilon whose chance of one right guess, to the n-th power, is below 5 %.
    chance = 0.05 ** (1 / 500)
    certain = epsilon_lower_bound(Guesses(500, 500, 500), 0.0)
    assert certain == pytest.approx(np.log(chance / (1 - chance)), abs=2e-3)


def test_more_right_guesses_refute_more_and_delta_forgives_some() -> None:
    bounds = [epsilon_lower_bound(Guesses(500, 400, right), DELTA) for right in (220, 260, 300, 340, 380)]
    assert bounds == sorted(bounds)
    assert p_value(Guesses(500, 400, 300), 1.0, 1e-3) > p_value(Guesses(500, 400, 300), 1.0, 0.0)


def test_pure_randomised_response_is_bounded_by_its_epsilon() -> None:
    """A mechanism whose epsilon is known: each coin told truthfully with probability e/(1+e)."""
    rng = np.random.default_rng(3)
    truth = np.e / (1 + np.e)
    bounds = [epsilon_lower_bound(Guesses(1000, 1000, int(rng.binomial(1000, truth))), 0.0) for _ in range(200)]
    assert np.mean([bound <= 1.0 for bound in bounds]) >= 0.93
    assert 0.8 < np.median(bounds) < 1.0
