"""A private run on disk: adapter weights, optimizer state and step number, as safetensors and JSON.

Nothing here can run code when loaded, and nothing random is kept: a resumed step draws under a new key.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from agents.training.ml.dp import PrivateTrainer
from agents.training.ml.lora import UNREADABLE, sync_files

FORMAT: Final = 1
_TENSORS: Final = "state.safetensors"
_DIGEST: Final = "sha256"
_WEIGHT: Final = "weight:"
_STATE: Final = "state:"
_NAME: Final = re.compile(r"step-(\d{8})")

# Only these may differ between a checkpoint and the run that resumes it: noise is solved anew after a crash.
_MAY_CHANGE: Final = frozenset({"noise_multiplier", "steps", "micro_batch"})
_KEPT: Final = {"adam": frozenset({"step", "exp_avg", "exp_avg_sq"}), "sgd": frozenset({"momentum_buffer"})}
_ONE_BEFORE: Final = "delete it and resume from the one before"


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another format, or of another run."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """A run between two steps: tensors on the CPU, and JSON values beside them."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def state_of(trainer: PrivateTrainer) -> TrainerState:
    """A copy of the trainer's state."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trainer.adapter.items():
        tensors[_WEIGHT + name] = parameter.detach().cpu().clone()
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{_STATE}{key}:{name}"] = value.detach().cpu().clone()
    meta = {
        "format": FORMAT,
        "step": trainer.step_index,
        "plan": trainer.plan.as_record(),
        "non_private": trainer.non_private,
    }
    return TrainerState(tensors, meta)


def restore(trainer: PrivateTrainer, state: TrainerState) -> None:
    """Put ``state`` into a freshly made trainer, whole or not at all. Raises ``CheckpointError``."""
    step = _check(trainer, state.meta)
    stored = {
        name.removeprefix(_WEIGHT): tensor.shape for name, tensor in state.tensors.items() if name.startswith(_WEIGHT)
    }
    differing = dict(stored.items() ^ {name: p.shape for name, p in trainer.adapter.items()}.items())
    if differing:
        raise CheckpointError(
            f"the checkpoint's adapter differs in {len(differing)} tensors: "
            "resume with the base model and LoRA settings the run started with"
        )
    moments = _moments(trainer, state.tensors, step)
    for label, tensor in state.tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{label[:200]} is not of finite numbers: {_ONE_BEFORE}")
    with torch.no_grad():
        for name, parameter in trainer.adapter.items():
            parameter.copy_(state.tensors[_WEIGHT + name])
    for name, key, tensor in moments:
        parameter = trainer.trainable[name]
        # Adam keeps its step counter on the CPU wherever the weights are.
        trainer.optimizer.state[parameter][key] = (
            tensor.clone() if key == "step" else tensor.to(parameter.device, copy=True)
        )
    trainer.step_index = step
    if state.meta["non_private"]:
        trainer.taint()


def save_checkpoint(trainer: PrivateTrainer, root: Path, *, keep: int = 2) -> Path:
    """Write ``root/step-<steps done>``, whole or not at all, and delete all but the newest ``keep``."""
    state = state_of(trainer)
    target = root / f"step-{trainer.step_index:08d}"
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".tmp-", dir=root))
    try:
        save_file(state.tensors, partial / _TENSORS)
        meta = {**state.meta, _DIGEST: _sha256(partial / _TENSORS)}
        (partial / "state.json").write_text(json.dumps(meta, indent=2))
        sync_files(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _checkpoints(root)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(root: Path) -> Path | None:
    """The checkpoint with the most steps below ``root``, if any; half-written ones do not count."""
    found = _checkpoints(root)
    return found[-1] if found else None


def marked_non_private(directory: Path) -> bool:
    """Whether a checkpoint says that some step before it had no valid noise. Raises ``CheckpointError``."""
    try:
        marked = json.loads((directory / "state.json").read_text())["non_private"]
    except UNREADABLE as error:
        raise CheckpointError(f"checkpoint {directory.name} cannot be read: {_ONE_BEFORE}") from error
    return _mark(marked)


def load_checkpoint(trainer: PrivateTrainer, directory: Path) -> None:
    """Resume ``trainer`` from a checkpoint directory. Raises ``CheckpointError``."""
    try:
        meta = json.loads((directory / "state.json").read_text())
        # A bit that fell over may leave a number that passes for a weight. Older versions' checkpoints have no digest.
        if meta.get(_DIGEST, found := _sha256(directory / _TENSORS)) != found:
            raise CheckpointError(f"the tensors of checkpoint {directory.name} are damaged: {_ONE_BEFORE}")
        tensors = load_file(directory / _TENSORS)
        named = _NAME.fullmatch(directory.name)
        if named is not None and meta["step"] != int(named[1]):
            raise CheckpointError(f"checkpoint {directory.name} says that it is of another step: {_ONE_BEFORE}")
        restore(trainer, TrainerState(tensors, meta))
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"checkpoint {directory.name} cannot be read: {_ONE_BEFORE}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _checkpoints(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name))


def _check(trainer: PrivateTrainer, meta: dict[str, Any]) -> int:
    """The step that the checkpoint is of, if it is one of this trainer's run."""
    if meta.get("format") != FORMAT:
        found = repr(meta.get("format"))[:80]
        raise CheckpointError(f"checkpoint format is {found}, this version reads {FORMAT}: {_ONE_BEFORE}")
    plan, stored = trainer.plan.as_record(), meta["plan"]
    changed = sorted(
        name for name in plan.keys() | stored.keys() if name not in _MAY_CHANGE and plan.get(name) != stored.get(name)
    )
    if changed:
        raise CheckpointError(
            f"the checkpoint was made under another plan ({', '.join(changed)[:500]} differ): "
            "resume under the plan the cycle was approved with"
        )
    step: int = meta["step"]
    if type(step) is not int or type(stored["steps"]) is not int or not 0 <= step <= stored["steps"]:
        raise CheckpointError(f"the checkpoint's step is none of its plan's: {_ONE_BEFORE}")
    _mark(meta["non_private"])
    return step


def _mark(non_private: Any) -> bool:
    # What is not plainly private would be taken for it.
    if type(non_private) is not bool:
        raise CheckpointError(f"the checkpoint does not say whether its run is private: {_ONE_BEFORE}")
    return non_private


def _moments(
    trainer: PrivateTrainer, tensors: Mapping[str, torch.Tensor], step: int
) -> list[tuple[str, str, torch.Tensor]]:
    """(parameter, key, tensor) of the optimizer's state: all of it, for every parameter, and of its shape."""
    found: dict[str, set[str]] = {name: set() for name in trainer.trainable}
    moments = []
    for label, tensor in tensors.items():
        if label.startswith(_WEIGHT):
            continue
        key, _, name = label.removeprefix(_STATE).partition(":")
        shape = trainer.trainable[name].shape if name in found else None
        if not label.startswith(_STATE) or tensor.shape != (torch.Size() if key == "step" else shape):
            raise CheckpointError(f"{label[:200]!r} is nothing of this run's optimizer: {_ONE_BEFORE}")
        found[name].add(key)
        moments.append((name, key, tensor))
    plan = trainer.plan
    stateless = not step or (plan.optimizer == "sgd" and not plan.momentum)
    expected = frozenset[str]() if stateless else _KEPT[plan.optimizer]
    if any(keys != expected for keys in found.values()):
        raise CheckpointError(f"the checkpoint lacks some of the optimizer's state: {_ONE_BEFORE}")
    return moments
