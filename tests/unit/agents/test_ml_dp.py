"""Private training against the definition: gradients one example at a time, clipping, noise, empty draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
scipy_stats = pytest.importorskip("scipy.stats")

import torch  # noqa: E402
from dp_parts import (  # noqa: E402
    EXAMPLES,
    PAD,
    clipped_sum,
    lora_model,
    norm_of,
    plain_plan,
    reference_gradients,
    update_of,
)

from agents.training.ml.dp import (  # noqa: E402
    HalfPrecisionError,
    NonFiniteGradientError,
    PrivateTrainer,
    TrainingFinishedError,
)
from agents.training.ml.lora import adapter_state  # noqa: E402
from agents.training.ml.loss import TrainExample  # noqa: E402

pytestmark = pytest.mark.torch

RARE = 1e-6


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_per_example_gradients_equal_those_computed_one_at_a_time(micro_batch: int, freeze_a: bool) -> None:
    model = lora_model(freeze_a=freeze_a)
    expected = reference_gradients(model.eval(), EXAMPLES)
    trainer = PrivateTrainer(model, EXAMPLES, plain_plan(micro_batch=micro_batch), pad_id=PAD)
    largest = max(norm_of(gradient) for gradient in expected)
    for start in range(0, len(EXAMPLES), micro_batch):
        part = list(range(start, min(start + micro_batch, len(EXAMPLES))))
        trainer._optimizer.zero_grad(set_to_none=True)
        trainer._backward(part)
        for row, index in enumerate(part):
            for got, want in zip(trainer._optimizer.grad_samples, expected[index], strict=True):
                assert float((got[row] - want).abs().max()) < 1e-4 * max(1.0, largest)
    trainer.close()


@pytest.mark.parametrize("freeze_a", [False, True])
def test_autograd_forms_no_sum_but_that_of_the_layers_that_come_first(freeze_a: bool) -> None:
    trainer = PrivateTrainer(lora_model(freeze_a=freeze_a), EXAMPLES, plain_plan(), pad_id=PAD)
    trainer._optimizer.zero_grad(set_to_none=True)
    trainer._backward([0, 1])
    formed = {name for name, weight in trainer.trainable.items() if weight.grad is not None}
    matrix = "lora_B" if freeze_a else "lora_A"
    projections = ("q_proj", "k_proj", "v_proj")
    assert formed == {
        f"base_model.model.model.layers.0.self_attn.{name}.{matrix}.default.weight" for name in projections
    }
    trainer.close()


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_a_step_is_the_sum_of_clipped_gradients_over_the_expected_batch(micro_batch: int) -> None:
    model = lora_model()
    gradients = reference_gradients(model.eval(), EXAMPLES)
    norms = sorted(norm_of(gradient) for gradient in gradients)
    bound = (norms[1] + norms[2]) / 2  # some examples are clipped, some are not
    expected = clipped_sum(gradients, bound)
    plan = plain_plan(max_grad_norm=bound, micro_batch=micro_batch)
    got = update_of(PrivateTrainer(model, EXAMPLES, plan, pad_id=PAD))
    for step, total in zip(got, expected, strict=True):
        assert torch.allclose(step, -total / len(EXAMPLES), atol=1e-5)


def test_no_example_contributes_more_than_the_clip_norm() -> None:
    bound = 0.01  # far below every gradient
    model = lora_model()
    trainer = PrivateTrainer(model, EXAMPLES, plain_plan(max_grad_norm=bound), pad_id=PAD, authored_data=True)
    report = trainer.step()
    assert report.authored is not None
    assert 0.99 * bound < report.authored.largest_contribution <= bound
    alone = update_of(PrivateTrainer(lora_model(), EXAMPLES[:1], plain_plan(max_grad_norm=bound), pad_id=PAD))
    assert norm_of(alone) <= bound


def test_an_example_with_an_infinite_loss_is_left_out_and_poisons_nothing() -> None:
    model = lora_model()
    expected = clipped_sum(reference_gradients(model.eval(), EXAMPLES), 1.0)
    with torch.no_grad():
        model.get_input_embeddings().weight[100] = torch.inf
    broken = TrainExample((100, 5), (60, 61))
    got = update_of(PrivateTrainer(model, [*EXAMPLES, broken], plain_plan(), pad_id=PAD))
    for step, total in zip(got, expected, strict=True):
        assert torch.allclose(step, -total / (len(EXAMPLES) + 1), atol=1e-5)


def test_weights_that_stop_being_finite_end_the_run() -> None:
    trainer = PrivateTrainer(lora_model(), EXAMPLES, plain_plan(learning_rate=torch.inf), pad_id=PAD)
    with pytest.raises(NonFiniteGradientError, match="learning rate"):
        trainer.step()


def noise_of_empty_steps(noise: float, bound: float, steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The noise of ``steps`` steps whose Poisson draws are empty, ``(steps, weights)``, through real steps."""
    rate = 1e-9
    plan = plain_plan(sample_rate=rate, noise_multiplier=noise, max_grad_norm=bound, steps=steps)
    trainer = PrivateTrainer(lora_model(), EXAMPLES, plan, pad_id=PAD, authored_data=True)
    rows = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in trainer.trainable.values():
                parameter.zero_()
        report = trainer.step()
        assert report.authored is not None
        assert report.authored.batch == 0
        assert report.authored.mean_loss is None
        flat = torch.cat([parameter.detach().flatten() for parameter in trainer.trainable.values()])
        rows.append(-flat.double().numpy() * rate * len(EXAMPLES))
    assert trainer.finished
    return np.stack(rows)


def test_an_empty_draw_is_a_step_whose_noise_has_the_stated_deviation() -> None:
    noise = noise_of_empty_steps(noise=1.3, bound=0.7, steps=2)
    assert noise.shape[1] > 10_000
    for row in noise:
        assert scipy_stats.kstest(row, "norm", args=(0.0, 1.3 * 0.7)).pvalue > RARE
        assert row.std() == pytest.approx(1.3 * 0.7, rel=5 / np.sqrt(2 * noise.shape[1]))


def test_noise_is_new_in_every_step() -> None:
    first, second = noise_of_empty_steps(noise=1.0, bound=1.0, steps=2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(len(first))


def test_noise_is_added_once_to_a_micro_batched_step() -> None:
    # The clipped sum is at most 5 x 1e-6, so that what a step of three micro-batches adds is its noise.
    plan = plain_plan(noise_multiplier=1e6, max_grad_norm=1e-6)
    model = lora_model()
    got = update_of(PrivateTrainer(model, EXAMPLES, plan, pad_id=PAD))
    flat = torch.cat([part.flatten() for part in got]).double().numpy() * len(EXAMPLES)
    assert flat.std() == pytest.approx(1.0, rel=5 / np.sqrt(2 * len(flat)) + 1e-4)


def test_draws_follow_the_sample_rate() -> None:
    plan = plain_plan(sample_rate=0.3, steps=120, learning_rate=1e-9)
    trainer = PrivateTrainer(lora_model(), EXAMPLES, plan, pad_id=PAD, authored_data=True)
    drawn = sum(report.authored.batch for report in (trainer.step() for _ in range(120)) if report.authored)
    assert scipy_stats.binomtest(drawn, 120 * len(EXAMPLES), 0.3).pvalue > RARE


def test_reports_of_private_runs_say_nothing_computed_from_the_data() -> None:
    plan = plain_plan(sample_rate=0.5, noise_multiplier=1.0, steps=6)
    trainer = PrivateTrainer(lora_model(), EXAMPLES, plan, pad_id=PAD)
    reports = [trainer.step() for _ in range(6)]
    assert {report.authored for report in reports} == {None}
    assert {report.tokens for report in reports} == {round(0.5 * sum(map(len, EXAMPLES)))}
    assert [report.step for report in reports] == list(range(6))
    assert all(report.seconds > 0 for report in reports)


def test_a_step_is_announced_before_it_runs_and_can_be_refused() -> None:
    announced: list[int] = []

    def reserve(step: int) -> None:
        announced.append(step)
        if step == 1:
            raise PermissionError("the lease is gone")

    model = lora_model()
    trainer = PrivateTrainer(model, EXAMPLES, plain_plan(steps=3), pad_id=PAD, before_step=reserve)
    trainer.step()
    before = adapter_state(model)
    with pytest.raises(PermissionError):
        trainer.step()
    assert announced == [0, 1]
    assert trainer.step_index == 1
    after = adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_plan_ends() -> None:
    trainer = PrivateTrainer(lora_model(), EXAMPLES, plain_plan(), pad_id=PAD)
    trainer.step()
    with pytest.raises(TrainingFinishedError):
        trainer.step()


def test_a_seed_repeats_a_run_and_marks_it() -> None:
    plan = plain_plan(sample_rate=0.5, noise_multiplier=1.0, steps=3)

    def run(seed: int | None) -> tuple[list[torch.Tensor], bool]:
        trainer = PrivateTrainer(lora_model(dropout=0.1), EXAMPLES, plan, pad_id=PAD, seed=seed)
        return update_of(trainer, 3), trainer.non_private

    (first, marked), (second, _) = run(11), run(11)
    assert marked
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    (secure, secure_marked), (again, _) = run(None), run(None)
    assert not secure_marked
    assert not any(torch.equal(left, right) for left, right in zip(secure, again, strict=True))


def test_a_run_without_noise_is_marked() -> None:
    assert PrivateTrainer(lora_model(), EXAMPLES, plain_plan(), pad_id=PAD).non_private


def test_bfloat16_bases_train_close_to_float32() -> None:
    def run(dtype: torch.dtype) -> torch.Tensor:
        trainer = PrivateTrainer(lora_model(dtype), EXAMPLES, plain_plan(), pad_id=PAD)
        return torch.cat([part.flatten() for part in update_of(trainer)])

    exact, rounded = run(torch.float32), run(torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert float((exact - rounded).norm() / exact.norm()) < 0.05


def test_float16_is_refused() -> None:
    with pytest.raises(HalfPrecisionError, match="bfloat16"):
        PrivateTrainer(lora_model(torch.float16), EXAMPLES, plain_plan(), pad_id=PAD)
    with pytest.raises(HalfPrecisionError, match="float32"):
        PrivateTrainer(lora_model().to(torch.bfloat16), EXAMPLES, plain_plan(), pad_id=PAD)


def test_nothing_to_train_or_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PrivateTrainer(lora_model(), [], plain_plan(), pad_id=PAD)
    with pytest.raises(ValueError, match="adapter"):
        PrivateTrainer(lora_model().requires_grad_(False), EXAMPLES, plain_plan(), pad_id=PAD)


def test_closing_takes_the_hooks_off_and_leaves_a_usable_model() -> None:
    model = lora_model()
    trainer = PrivateTrainer(model, EXAMPLES, plain_plan(), pad_id=PAD)
    trainer.step()
    trainer.close()
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())
    PrivateTrainer(model, EXAMPLES, plain_plan(), pad_id=PAD).step()  # hooks can be put on again


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({"schedule": "constant"}, 9, 1.0),
        ({"schedule": "linear"}, 0, 1.0),
        ({"schedule": "linear"}, 9, 0.1),
        ({"schedule": "cosine"}, 5, 0.5),
        ({"schedule": "constant", "warmup_fraction": 0.4}, 1, 0.4),
        ({"schedule": "linear", "warmup_fraction": 0.5}, 5, 1.0),
    ],
)
def test_learning_rates(changes: dict[str, Any], step: int, expected: float) -> None:
    assert plain_plan(steps=10, **changes).learning_rate_at(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"steps": 0},
        {"noise_multiplier": -1.0},
        {"max_grad_norm": 0.0},
        {"delta": 1.0},
        {"micro_batch": 0},
        {"warmup_fraction": 1.0},
        {"schedule": "triangle"},
        {"optimizer": "lion"},
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="plan has"):
        plain_plan(**changes)
