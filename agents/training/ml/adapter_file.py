"""Whether the files of an adapter are what this project writes, before PEFT acts on them.

PEFT does what a configuration says: it imports modules that it names, and makes matrices of any rank. So only what
our own training sets may be set, and the tensors must be the ones that the configuration promises for this base model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, TaskType
from safetensors import safe_open

from agents.training.adapter import ADAPTER_FILES, AdapterError

MAX_RANK: Final = 1024
_FREE: Final = frozenset({"base_model_name_or_path", "inference_mode", "peft_version", "revision"})
_OURS: Final = frozenset({"r", "lora_alpha", "lora_dropout", "target_modules"})
_NOTHING: Final[tuple[Any, ...]] = (None, False, [], {})
_PREFIX: Final = "base_model.model."


def check_adapter_files(base: Any, directory: Path) -> None:
    """Raise ``AdapterError`` where the adapter in ``directory`` is none that fits ``base``.

    What a damaged file makes the readers of JSON and safetensors raise is the caller's to catch.
    """
    rank, targets = _configuration(json.loads((directory / ADAPTER_FILES[0]).read_text(encoding="utf-8")))
    expected = {}
    for name, layer in base.named_modules():
        if any(name == target or name.endswith(f".{target}") for target in targets):
            if not isinstance(layer, torch.nn.Linear):
                raise _unfit(f"target_modules names {name}, which is no linear layer")
            expected[f"{_PREFIX}{name}.lora_A.weight"] = [rank, layer.in_features]
            expected[f"{_PREFIX}{name}.lora_B.weight"] = [layer.out_features, rank]
    if not expected:
        raise _unfit("target_modules names no layer of the base model")
    with safe_open(directory / ADAPTER_FILES[1], "pt") as stored:
        found = {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - no mapping
        if found != expected:
            differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
            raise _unfit(f"{len(differing)} tensors are not what its configuration and the base model ask for")
        for name in found:
            tensor = stored.get_tensor(name)
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
                raise _unfit(f"{name} is not of finite numbers")


def _configuration(given: Any) -> tuple[int, list[str]]:
    """Rank and layers."""
    if not isinstance(given, dict):
        raise _unfit(f"its configuration is a {type(given).__name__}, not an object")
    usual = LoraConfig(task_type=TaskType.CAUSAL_LM).to_dict()
    usual |= {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    for name in ("peft_type", "task_type"):
        if given.get(name) != usual[name]:
            raise _unfit(f"{name} is not {usual[name]}")
    for name, value in given.items():
        if name in _FREE and (value is None or isinstance(value, bool | str)):
            continue
        if name not in _OURS and not _unset(value, name, usual):
            raise _unfit(f"it sets {name[:80]!r}, which no training here sets")
    rank, targets = given.get("r"), given.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise _unfit(f"its rank r is no whole number from 1 to {MAX_RANK}")
    for name, least, most in (("lora_alpha", 0.0, 1e6), ("lora_dropout", 0.0, 1.0)):
        value = given.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _unfit(f"{name} is no number")
        if not least <= value <= most:
            raise _unfit(f"{name} is not from {least:g} to {most:g}")
    if not isinstance(targets, list) or not targets or not all(isinstance(one, str) and one for one in targets):
        raise _unfit("target_modules is no list of layers' names")
    return rank, targets


def _unset(value: Any, name: str, usual: dict[str, Any]) -> bool:
    """Whether a field is as PEFT writes it where nothing was set; one that this PEFT has not, whether it is empty."""
    if name not in usual:
        return value in _NOTHING
    expected = usual[name]
    return (type(value) is type(expected) and bool(value == expected)) or (value is None and expected in _NOTHING)


def _unfit(why: str) -> AdapterError:
    return AdapterError(f"{why}: restore the adapter from a backup, or train anew")
