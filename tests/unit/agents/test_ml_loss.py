"""Losses: per example, independent of neighbours and padding, equal to the model's own."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from agents.training.ml.loss import (  # noqa: E402
    TrainExample,
    UnsupportedModelError,
    collate,
    held_out_loss,
    per_example_loss,
)

pytestmark = pytest.mark.torch

PAD = 2
CPU = torch.device("cpu")
# Lengths differ, and one target ends in the padding token, as targets do where padding is the end token.
EXAMPLES = [
    TrainExample((5, 6, 7), (8, 9, PAD)),
    TrainExample((11,), (12,)),
    TrainExample((21, 22, 23, 24, 25, 26), (27, 28, 29, 30, 31)),
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def own_loss(model: LlamaForCausalLM, example: TrainExample) -> float:
    """What transformers computes for this example alone."""
    ids = torch.tensor([[*example.prompt_ids, *example.target_ids]])
    labels = ids.clone()
    labels[:, : len(example.prompt_ids)] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def test_each_loss_is_the_models_own_loss_of_the_example_alone(model: LlamaForCausalLM) -> None:
    losses = per_example_loss(model, collate(EXAMPLES, PAD, CPU))
    assert losses.tolist() == pytest.approx([own_loss(model, example) for example in EXAMPLES], abs=1e-5)


def test_neighbours_do_not_change_a_loss(model: LlamaForCausalLM) -> None:
    together = per_example_loss(model, collate(EXAMPLES, PAD, CPU)).detach()[1]
    beside_another = per_example_loss(model, collate([EXAMPLES[1], EXAMPLES[0]], PAD, CPU)).detach()[0]
    assert float(together) == pytest.approx(float(beside_another), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_held_out_loss_is_the_mean_over_examples_whatever_the_batch(model: LlamaForCausalLM, batch_size: int) -> None:
    expected = sum(own_loss(model, example) for example in EXAMPLES) / len(EXAMPLES)
    assert held_out_loss(model, EXAMPLES, PAD, batch_size) == pytest.approx(expected, abs=1e-5)


def test_held_out_loss_leaves_the_training_mode_alone(model: LlamaForCausalLM) -> None:
    model.train()
    try:
        held_out_loss(model, EXAMPLES, PAD)
        assert model.training
    finally:
        model.eval()
    with pytest.raises(ValueError, match="at least one"):
        held_out_loss(model, [], PAD)


def test_a_model_that_rescales_its_logits_is_refused(model: LlamaForCausalLM) -> None:
    model.config.final_logit_softcapping = 30.0
    try:
        with pytest.raises(UnsupportedModelError, match="final_logit_softcapping"):
            per_example_loss(model, collate(EXAMPLES, PAD, CPU))
    finally:
        del model.config.final_logit_softcapping


@pytest.mark.parametrize(("prompt", "target"), [((), (1,)), ((1,), ())])
def test_an_example_needs_a_prompt_and_a_target(prompt: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        TrainExample(prompt, target)
