"""Training examples, batches of them, and the loss of each example by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional

# Models that rescale their logits after the head; applying the bare head to chosen positions would miss it.
_LOGIT_RESCALING: Final = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class UnsupportedModelError(TypeError):
    """The model's loss cannot be computed from its backbone and its output layer alone."""


@dataclass(frozen=True, slots=True)
class TrainExample:
    """A prompt and the answer to learn, as tokens. Only the answer's tokens carry loss."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.target_ids:
            raise ValueError(
                f"an example has {len(self.prompt_ids)} prompt and {len(self.target_ids)} target tokens: "
                "both need at least one"
            )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded examples. The last four are flat over all target tokens, ``(T,)``."""

    input_ids: torch.Tensor  # (B, L)
    attention_mask: torch.Tensor  # (B, L), 1 on real tokens: padding is masked, never told by its id
    rows: torch.Tensor  # the example a target token belongs to
    positions: torch.Tensor  # the position that predicts it, one before its own
    targets: torch.Tensor
    weights: torch.Tensor  # 1 / the number of target tokens of its example


def collate(examples: Sequence[TrainExample], pad_id: int, device: torch.device) -> Batch:
    """The examples as one batch on ``device``."""
    width = max(len(example) for example in examples)
    input_ids = torch.full((len(examples), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(examples), width), dtype=torch.long)
    rows: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = torch.tensor([*example.prompt_ids, *example.target_ids])
        mask[row, : len(example)] = 1
        count = len(example.target_ids)
        start = len(example.prompt_ids) - 1
        rows += [row] * count
        positions += range(start, start + count)
        targets += example.target_ids
        weights += [1.0 / count] * count
    return Batch(
        input_ids.to(device),
        mask.to(device),
        torch.tensor(rows, device=device),
        torch.tensor(positions, device=device),
        torch.tensor(targets, device=device),
        torch.tensor(weights, dtype=torch.float32, device=device),
    )


def per_example_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of each example over its own target tokens, in nats, float32, ``(B,)``.

    No term couples two examples, which is what per-example clipping needs; the loss transformers returns
    divides by the batch's token count and so does. Target positions are gathered before the output layer: with
    a vocabulary of 49,152 the logits of the other positions would be most of the memory of a step.

    Raises ``UnsupportedModelError``.
    """
    backbone, head = _backbone_and_head(model)
    hidden = backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
    logits = head(hidden[batch.rows, batch.positions]).float()
    losses = functional.cross_entropy(logits, batch.targets, reduction="none") * batch.weights
    return torch.zeros(len(batch.input_ids), device=losses.device).index_add(0, batch.rows, losses)


@torch.inference_mode()
def held_out_loss(model: Any, examples: Sequence[TrainExample], pad_id: int, batch_size: int = 16) -> float:
    """Mean of the per-example losses over ``examples``, in nats, without dropout."""
    if not examples:
        raise ValueError("held-out loss of no examples: give at least one")
    device = next(model.parameters()).device
    ordered = sorted(examples, key=len)
    was_training = model.training
    model.eval()
    try:
        total = 0.0
        for start in range(0, len(ordered), batch_size):
            batch = collate(ordered[start : start + batch_size], pad_id, device)
            total += float(per_example_loss(model, batch).double().sum())
    finally:
        model.train(was_training)
    return total / len(examples)


def _backbone_and_head(model: Any) -> tuple[Any, Any]:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    backbone = causal.base_model
    rescaled = [name for name in _LOGIT_RESCALING if getattr(causal.config, name, None) not in (None, 1.0)]
    if head is None or backbone is causal or rescaled:
        raise UnsupportedModelError(
            f"{type(causal).__name__} {'rescales its logits by ' + rescaled[0] if rescaled else 'has no output layer'}"
            ": use a decoder-only model whose logits are its output layer applied to its last hidden state"
        )
    return backbone, head
