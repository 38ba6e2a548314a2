"""Opacus' hooks for the gradient of each example, without what a private step would throw away.

Two things cost a step of 16 x 128 tokens some five hundredths of its CPU time, and nothing reads them: the sum of the
gradients, which autograd forms beside those of each example, and a copy of the latter into memory cleared for it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.linear import compute_linear_grad_sample


def _linear(
    layer: torch.nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Opacus' rule for a linear layer; what it gives is kept, not copied, where nothing has to be added to it."""
    found: dict[torch.nn.Parameter, torch.Tensor] = compute_linear_grad_sample(layer, activations, backprops)
    weight: Any = layer.weight
    # A bias' gradients may be the very tensor that autograd works on.
    if weight in found and len(found[weight]) == layer.max_batch_len and not hasattr(weight, "_current_grad_sample"):
        weight._current_grad_sample = found.pop(weight)
    return found


class PerExampleGradients(GradSampleModule):  # type: ignore[misc]  # opacus is untyped here
    """Fills ``grad_sample``, (B, *shape), of every trained parameter of ``model``.

    Call the model, then ``backward`` in place of the loss' own; the loss must be a sum over examples.
    """

    GRAD_SAMPLERS: ClassVar[dict[type[torch.nn.Module], Any]] = {
        **GradSampleModule.GRAD_SAMPLERS,
        torch.nn.Linear: _linear,
    }

    def __init__(self, model: Any) -> None:
        super().__init__(model, loss_reduction="sum")
        self._first: dict[torch.nn.Parameter, None] = {}
        for module in self.iterate_submodules(model):
            self.autograd_grad_sample_hooks.append(module.register_forward_pre_hook(self._note_first))

    def backward(self, loss: torch.Tensor) -> None:
        """Go backward from ``loss``, a scalar of one forward pass.

        ``grad`` stays as it was but for the parameters that come first: those of layers whose input no trained
        parameter has touched. The way to them leads past every layer's hook, yet asks for no sum on it.
        """
        first, self._first = list(self._first), {}
        loss.backward(inputs=first or None)  # type: ignore[no-untyped-call]

    def _note_first(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        touched = any(part.requires_grad for part in inputs if isinstance(part, torch.Tensor))
        if module.training and torch.is_grad_enabled() and not touched:
            self._first |= dict.fromkeys(own for own in module.parameters(recurse=False) if own.requires_grad)
