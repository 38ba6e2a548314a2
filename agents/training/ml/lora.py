"""LoRA adapters: attaching, saving, loading and comparing them (Hu et al. 2021)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError

from agents.training.adapter import ADAPTER_FILES as ADAPTER_FILES
from agents.training.adapter import AdapterError as AdapterError
from agents.training.adapter import adapter_digest as adapter_digest
from agents.training.ml.adapter_file import check_adapter_files

UNREADABLE = (
    *(SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
)
"""What may be raised by reading files that are damaged, or well formed and something else."""


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Rank, scale (``alpha / r``), dropout and the layers that get an adapter; biases stay frozen."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.1
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    # Train only the B matrices (Sun et al. 2024, FFA-LoRA). B starts at zero, so the first gradients of A are
    # zero and a private run adds nothing but noise to A; frozen, A costs no noise at all.
    freeze_a: bool = False


@dataclass(frozen=True, slots=True)
class WeightShift:
    """How far an adapter moved, over all its tensors."""

    moved: bool  # every B matrix differs from what it was, and every tensor is finite
    tensors: int
    unmoved: int  # B matrices only: A may be frozen, and a layer's update is the product of both
    not_finite: int
    relative_change: float  # ||after - before|| / ||after||, Frobenius; NaN if a weight is not finite


def attach_adapter(base: Any, spec: LoraSpec, *, seed: int | None = None) -> Any:
    """A PEFT model over ``base``, whose own weights are frozen; adapter weights are float32 on any base.

    ``seed`` fixes the initial weights (they are public: they precede all data). Torch's random state is left
    as it was. PEFT changes ``base`` in place.
    """
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.target_modules),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = get_peft_model(base, config)
    if spec.freeze_a:
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    return model


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the adapter's weights on the CPU, by PEFT's names."""
    # Left to itself PEFT asks the hub whether the vocabulary grew.
    state: Mapping[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def save_adapter(model: Any, directory: Path, *, base_name: str) -> str:
    """Write the adapter as safetensors into ``directory`` and return its digest.

    The directory appears whole or not at all, and must not exist yet. ``base_name`` is recorded in place of
    the base model's path, so that the digest does not depend on where a machine keeps its models.
    """
    if directory.exists():
        raise AdapterError(f"{directory} exists: an adapter is never overwritten, choose another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    model.peft_config["default"].base_model_name_or_path = base_name
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=directory.parent))
    try:
        # Left to itself PEFT asks the hub whether the vocabulary grew; adapters here never hold embeddings.
        model.save_pretrained(partial, safe_serialization=True, save_embedding_layers=False)
        for extra in partial.iterdir():
            if extra.name not in ADAPTER_FILES:  # PEFT's model card template
                extra.unlink()
        sync_files(partial)
        partial.chmod(0o755)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return adapter_digest(directory)


def load_adapter(base: Any, directory: Path, *, trainable: bool = False) -> Any:
    """A PEFT model of ``base`` and the adapter in ``directory``.

    Raises ``AdapterError``; ``base`` is then as it was.
    """
    adapter_digest(directory)  # refuses an incomplete directory, which PEFT would take for a hub name
    try:
        check_adapter_files(base, directory)
        model = PeftModel.from_pretrained(base, directory, is_trainable=trainable)
    except AdapterError as error:
        raise AdapterError(f"the adapter in {directory} cannot be used: {error}") from error
    except UNREADABLE as error:
        told = f"the adapter in {directory} cannot be loaded ({type(error).__name__})"
        raise AdapterError(f"{told}: restore it from a backup, or train anew") from error
    return model.train(trainable)


def unload_adapter(model: Any) -> Any:
    """The base model that ``load_adapter`` put ``model`` over, as it was before: its layers, bit for bit.

    So several adapters are tried on one base in memory, one after the other. ``model`` is of no use afterwards.
    """
    return model.unload()


def weights_moved(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> WeightShift:
    """Compare two ``adapter_state``s of one adapter. Raises ``AdapterError`` where they are of different adapters."""
    if before.keys() != after.keys():
        raise AdapterError(
            f"{len(before.keys() ^ after.keys())} tensors are in one adapter only: compare states of one run"
        )
    unmoved = sum(torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    not_finite = sum(not bool(torch.isfinite(tensor).all()) for tensor in after.values())
    change = sum(float((after[name].double() - before[name].double()).square().sum()) for name in before)
    size = sum(float(tensor.double().square().sum()) for tensor in after.values())
    return WeightShift(
        moved=bool(before) and not unmoved and not not_finite,
        tensors=len(before),
        unmoved=unmoved,
        not_finite=not_finite,
        relative_change=(change / size) ** 0.5 if size else 0.0,
    )


def sync_files(directory: Path) -> None:
    """Force the files of ``directory`` to disk, so that a rename after it never outlives their content."""
    for file in directory.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
