"""A small model with an adapter, examples, and what private training of them must come to, by the definition.

The models have two layers; the adapter's B matrices are randomised first, because with B at zero the gradient of
every A is zero and a wrong one would look right.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agents.training.ml.dp import PrivateTrainer
from agents.training.ml.lora import LoraSpec, attach_adapter
from agents.training.ml.loss import TrainExample
from agents.training.ml.plan import DpPlan

PAD = 2
EXAMPLES = [
    TrainExample(tuple(range(5, 5 + prompt)), tuple(range(60, 60 + target)))
    for prompt, target in [(3, 9), (17, 2), (1, 1), (8, 5), (12, 12)]
]


def lora_model(dtype: torch.dtype = torch.float32, dropout: float = 0.0, freeze_a: bool = False) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    spec = LoraSpec(dropout=dropout, freeze_a=freeze_a)
    model = attach_adapter(LlamaForCausalLM(config).to(dtype), spec, seed=1)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def reference_gradients(model: Any, examples: list[TrainExample]) -> list[list[torch.Tensor]]:
    """Gradient of each example's own loss: alone, unpadded, through transformers' own loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.target_ids]])
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = -100
        found.append(list(torch.autograd.grad(model(input_ids=ids, labels=labels).loss, trained)))
    return found


def norm_of(gradient: list[torch.Tensor]) -> float:
    return float(torch.stack([part.norm() for part in gradient]).norm())


def clipped_sum(gradients: list[list[torch.Tensor]], bound: float) -> list[torch.Tensor]:
    factors = [min(1.0, bound / norm_of(gradient)) for gradient in gradients]
    return [
        sum((factor * part for factor, part in zip(factors, parts, strict=True)), torch.zeros_like(parts[0]))
        for parts in zip(*gradients, strict=True)
    ]


def plain_plan(**changes: Any) -> DpPlan:
    """Every example in every batch, no noise, and an optimizer that subtracts the gradient."""
    values: dict[str, Any] = {
        "sample_rate": 1.0,
        "steps": 1,
        "noise_multiplier": 0.0,
        "learning_rate": 1.0,
        "schedule": "constant",
        "optimizer": "sgd",
        "momentum": 0.0,
        "micro_batch": 2,
    }
    return DpPlan(**{**values, **changes})


def update_of(trainer: PrivateTrainer, steps: int = 1) -> list[torch.Tensor]:
    """What a number of steps add to the trained weights."""
    before = [parameter.detach().clone() for parameter in trainer.trainable.values()]
    for _ in range(steps):
        trainer.step()
    return [after.detach() - old for after, old in zip(trainer.trainable.values(), before, strict=True)]
