"""Nothing that the system reads can run code: no module unpickles, and a pickle in an adapter's place is refused."""

from __future__ import annotations

import ast
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import REPOSITORY

PACKAGES = ("app", "agents", "models", "policies", "otel")
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pandas"}
CALLS = {"torch.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"}


class Canary:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def offences(source: str) -> Iterator[str]:
    """What a module does that could run code out of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS:
                yield name
            for keyword in node.keywords:
                if keyword.arg in {"allow_pickle", "trust_remote_code"} and ast.unparse(keyword.value) != "False":
                    yield f"{name}({keyword.arg}=)"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(path, weights_only=True)",
        "numpy.load(path, allow_pickle=True)",
        "model.from_pretrained(path, trust_remote_code=flag)",
    ],
)
def test_what_unpickles_is_found(source: str) -> None:
    assert list(offences(source))


def test_no_module_unpickles() -> None:
    files = [file for package in PACKAGES for file in sorted((REPOSITORY / package).rglob("*.py"))]
    assert len(files) > 200
    found = {str(file.relative_to(REPOSITORY)): what for file in files if (what := list(offences(file.read_text())))}
    assert not found


@pytest.mark.torch
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_pickle_in_an_adapters_place_is_refused_and_not_loaded(tmp_path: Path, name: str) -> None:
    pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    from agents.training.ml.lora import AdapterError, LoraSpec, attach_adapter, load_adapter, save_adapter

    def base() -> Any:
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
        )

    canary, adapter = tmp_path / "ran", tmp_path / "adapter"
    save_adapter(attach_adapter(base(), LoraSpec(), seed=1), adapter, base_name="small")
    load_adapter(base(), adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(AdapterError):
        load_adapter(base(), adapter)
    assert not canary.exists()
    pickle.loads((adapter / name).read_bytes())  # noqa: S301 - the canary would have sung
    assert canary.exists()


@pytest.mark.torch
@pytest.mark.parametrize("config", ["[]", "{}", "null", '{"peft_type": "LORA", "r": "x"}', "{", '{"peft_type": 7}'])
def test_an_adapter_with_a_damaged_configuration_is_refused(tmp_path: Path, config: str) -> None:
    pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    from agents.training.ml.lora import AdapterError, LoraSpec, attach_adapter, load_adapter, save_adapter

    adapter = tmp_path / "adapter"
    small = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    save_adapter(attach_adapter(LlamaForCausalLM(small), LoraSpec(), seed=1), adapter, base_name="small")
    (adapter / "adapter_config.json").write_text(config)
    with pytest.raises(AdapterError):
        load_adapter(LlamaForCausalLM(small), adapter)


@pytest.mark.torch
@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "antigravity"}},
        {"r": 2**40}, {"r": 8}, {"r": True}, {"r": "16"}, {"target_modules": ["norm"]},
        {"target_modules": "all-linear"},
        {"lora_alpha": float("nan")}, {"lora_dropout": 2}, {"modules_to_save": ["lm_head"]}, {"use_dora": True},
        {"layers_to_transform": 0}, {"rank_pattern": {"q_proj": 10**9}}, {"unheard_of": 5},
        {"trainable_token_indices": []}, {"bias": "all"},
    ],
)  # fmt: skip
def test_an_adapter_that_sets_what_training_does_not_is_refused_before_peft_acts_on_it(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    from agents.training.ml.lora import AdapterError, LoraSpec, attach_adapter, load_adapter, save_adapter

    adapter = tmp_path / "adapter"
    small = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    save_adapter(attach_adapter(LlamaForCausalLM(small), LoraSpec(), seed=1), adapter, base_name="small")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    base = LlamaForCausalLM(small)
    layers = set(base.state_dict())
    with pytest.raises(AdapterError, match="restore"):
        load_adapter(base, adapter)
    assert "antigravity" not in sys.modules
    assert set(base.state_dict()) == layers, "the base model kept layers of a refused adapter"
