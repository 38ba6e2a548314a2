"""Adapters: precision, the round trip through a directory, digests, and the check that training moved them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from agents.training.ml.lora import (  # noqa: E402
    ADAPTER_FILES,
    AdapterError,
    LoraSpec,
    adapter_digest,
    adapter_state,
    attach_adapter,
    load_adapter,
    save_adapter,
    unload_adapter,
    weights_moved,
)

pytestmark = pytest.mark.torch


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def trained_adapter() -> Any:
    """An adapter whose B matrices are no longer zero, as after training."""
    model = attach_adapter(base_model(), LoraSpec(), seed=1)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def test_only_float32_adapters_on_the_four_attention_projections_are_trained() -> None:
    model = attach_adapter(base_model(), LoraSpec(), seed=1)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4 * 2  # layers, projections, A and B
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert all("lora_" in name for name in trained)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_frozen_a_leaves_only_b_to_train() -> None:
    model = attach_adapter(base_model(), LoraSpec(freeze_a=True), seed=1)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 4
    assert all("lora_B" in name for name in trained)


def test_a_seed_fixes_the_first_weights_and_leaves_torchs_random_state_alone() -> None:
    base = base_model()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first = attach_adapter(base, LoraSpec(), seed=4)
    assert torch.equal(torch.rand(3), expected)
    second = attach_adapter(base_model(), LoraSpec(), seed=4)
    assert not any(
        not torch.equal(left, right)
        for left, right in zip(adapter_state(first).values(), adapter_state(second).values(), strict=True)
    )


def test_a_reloaded_adapter_gives_the_same_logits(tmp_path: Path) -> None:
    model = trained_adapter().eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    digest = save_adapter(model, tmp_path / "adapter", base_name="tiny")
    reloaded = load_adapter(base_model(), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, before)
        assert not torch.equal(base_model()(input_ids=ids).logits, before)
    assert not reloaded.training
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == sorted(ADAPTER_FILES)
    assert adapter_digest(tmp_path / "adapter") == digest


def test_the_digest_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    one = save_adapter(trained_adapter(), tmp_path / "a" / "adapter", base_name="tiny")
    same = save_adapter(trained_adapter(), tmp_path / "b" / "adapter", base_name="tiny")
    other = save_adapter(attach_adapter(base_model(), LoraSpec(), seed=1), tmp_path / "c" / "adapter", base_name="tiny")
    assert one == same
    assert one != other
    assert str(tmp_path) not in (tmp_path / "a" / "adapter" / "adapter_config.json").read_text()


def test_an_adapter_is_never_overwritten_and_an_incomplete_one_never_loaded(tmp_path: Path) -> None:
    model = trained_adapter()
    save_adapter(model, tmp_path / "adapter", base_name="tiny")
    with pytest.raises(AdapterError, match="never overwritten"):
        save_adapter(model, tmp_path / "adapter", base_name="tiny")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="adapter_model"):
        load_adapter(base_model(), tmp_path / "adapter")


def test_movement_is_told_from_standing_still_and_from_breaking() -> None:
    before = adapter_state(attach_adapter(base_model(), LoraSpec(), seed=1))
    assert not weights_moved(before, before).moved
    assert weights_moved(before, before).unmoved == len(before) / 2

    moved = {name: tensor + 0.01 for name, tensor in before.items()}
    shift = weights_moved(before, moved)
    assert shift.moved
    assert shift.relative_change > 0

    stuck = dict(moved)
    name = next(name for name in stuck if "lora_B" in name)
    stuck[name] = before[name]
    assert not weights_moved(before, stuck).moved

    broken = dict(moved)
    broken[name] = torch.full_like(before[name], torch.nan)
    assert weights_moved(before, broken).not_finite == 1
    assert not weights_moved(before, broken).moved
    with pytest.raises(AdapterError, match="one run"):
        weights_moved(before, {})


def test_a_base_is_itself_again_once_an_adapter_is_unloaded(tmp_path: Path) -> None:
    trained = trained_adapter()
    save_adapter(trained, tmp_path / "first", base_name="base")
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.mul_(-0.5)
    save_adapter(trained, tmp_path / "second", base_name="base")
    ids = torch.arange(12)[None]

    def logits(model: Any) -> Any:
        with torch.inference_mode():
            return model.eval()(ids).logits

    alone = logits(load_adapter(base_model(), tmp_path / "second"))
    base = base_model()
    before = logits(base)
    first = load_adapter(base, tmp_path / "first")
    assert not torch.equal(logits(first), before)
    base = unload_adapter(first)
    assert torch.equal(logits(base), before)
    assert not [name for name, _ in base.named_parameters() if "lora" in name]
    with warnings.catch_warnings():
        # PEFT warns where it finds a model that another adapter was left in.
        warnings.simplefilter("error")
        second = load_adapter(base, tmp_path / "second")
    assert torch.equal(logits(second), alone)
