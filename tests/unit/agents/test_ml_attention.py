"""Grouped attention is the usual one up to rounding: answers, gradients, and which models get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from agents.training.ml.attention import GROUPED  # noqa: E402
from agents.training.ml.base_model import _attention  # noqa: E402

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


def model_of(attention: str, key_heads: int) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=key_heads,
        attn_implementation=attention,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    assert model.config._attn_implementation == attention
    return model


def padded(count: int = 4, length: int = 20) -> dict[str, Any]:
    ids = torch.randint(1, 50, (count, length), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row in range(count):
        mask[row, : 2 * row] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_it_answers_and_learns_as_the_usual_one(key_heads: int) -> None:
    models = [model_of(attention, key_heads) for attention in ("eager", GROUPED)]
    seen = padded()
    real = seen["attention_mask"].bool()
    logits = []
    for model in models:
        found = model(**seen).logits[real]
        found.float().pow(2).mean().backward()
        logits.append(found)
    assert torch.allclose(*logits, atol=1e-5)
    assert logits[0].abs().max() > 0.05, "a model that says nothing would agree with anything"
    for (name, usual), grouped in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(usual.grad, grouped.grad, atol=1e-6), name


def test_it_generates_what_the_usual_one_does() -> None:
    answers = [
        model_of(attention, 2).generate(**padded(), max_new_tokens=24, do_sample=False, pad_token_id=0)
        for attention in ("eager", GROUPED)
    ]
    assert torch.equal(*answers)


def test_a_key_head_is_read_by_its_own_query_heads() -> None:
    """Were heads mixed up, a change of one key head would reach others' answers."""
    from agents.training.ml.attention import grouped_attention

    rng = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, 5, 8, generator=rng) for heads in (6, 2, 2))
    module = torch.nn.Module().eval()
    before, _ = grouped_attention(module, query, key, value, None, 0.5)
    key[0, 1] += 1.0
    value[0, 1] += 1.0
    after, weights = grouped_attention(module, query, key, value, None, 0.5)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.isclose(before[:, :, 3:], after[:, :, 3:]).any()
    assert weights.shape == (1, 6, 5, 5)


@pytest.mark.parametrize(("model_type", "attention"), [("llama", GROUPED), ("gemma2", "eager")])
def test_a_model_with_attention_of_its_own_keeps_it(tmp_path: Path, model_type: str, attention: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    assert _attention(tmp_path, CPU) == attention
    assert _attention(tmp_path, torch.device("cuda")) == "sdpa"
