"""Checkpoints: a resumed run continues where it stopped, and only under its own plan."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("opacus")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from agents.training.ml.checkpoint import (  # noqa: E402
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    marked_non_private,
    save_checkpoint,
    state_of,
)
from agents.training.ml.dp import PrivateTrainer  # noqa: E402
from agents.training.ml.lora import LoraSpec, adapter_state, attach_adapter  # noqa: E402
from agents.training.ml.loss import TrainExample  # noqa: E402
from agents.training.ml.plan import DpPlan  # noqa: E402

pytestmark = pytest.mark.torch

EXAMPLES = [TrainExample((5, 6, 7 + index), (20 + index, 21, 22)) for index in range(6)]
PLAN = DpPlan(sample_rate=0.5, steps=5, noise_multiplier=1.0, learning_rate=0.01, micro_batch=2)


def new_trainer(
    plan: DpPlan = PLAN, seed: int | None = 3, rank: int = 16, *, freeze_a: bool = False, init: int = 1
) -> tuple[Any, PrivateTrainer]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = attach_adapter(LlamaForCausalLM(config), LoraSpec(r=rank, freeze_a=freeze_a), seed=init)
    return model, PrivateTrainer(model, EXAMPLES, plan, pad_id=2, seed=seed)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_ends_bit_equal_to_one_never_interrupted(
    tmp_path: Path, optimizer: Literal["adam", "sgd"]
) -> None:
    plan = replace(PLAN, optimizer=optimizer)
    whole_model, whole = new_trainer(plan)
    for _ in range(plan.steps):
        whole.step()

    _, interrupted = new_trainer(plan)
    for _ in range(2):
        interrupted.step()
    save_checkpoint(interrupted, tmp_path)

    resumed_model, resumed = new_trainer(plan)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    load_checkpoint(resumed, found)
    assert resumed.step_index == 2
    while not resumed.finished:
        resumed.step()
    expected, got = adapter_state(whole_model), adapter_state(resumed_model)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_newest_whole_checkpoint_counts_and_older_ones_go(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    _, trainer = new_trainer()
    for _ in range(4):
        trainer.step()
        save_checkpoint(trainer, tmp_path, keep=2)
    (tmp_path / ".tmp-killed").mkdir()  # what a kill in the middle of writing leaves
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "step-00000004"
    assert sorted(entry.name for entry in tmp_path.glob("step-*")) == ["step-00000003", "step-00000004"]


def test_noise_may_be_solved_anew_but_nothing_else_of_the_plan_may_change(tmp_path: Path) -> None:
    _, trainer = new_trainer()
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    _, louder = new_trainer(replace(PLAN, noise_multiplier=1.4, steps=4))
    load_checkpoint(louder, saved)
    assert louder.step_index == 1
    _, other = new_trainer(replace(PLAN, sample_rate=0.9, learning_rate=1.0))
    with pytest.raises(CheckpointError, match="learning_rate, sample_rate"):
        load_checkpoint(other, saved)


def test_a_frozen_a_comes_back_with_its_b(tmp_path: Path) -> None:
    model, trainer = new_trainer(freeze_a=True)
    trainer.step()
    other_model, other = new_trainer(freeze_a=True, init=2)
    load_checkpoint(other, save_checkpoint(trainer, tmp_path))
    expected, got = adapter_state(model), adapter_state(other_model)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_run_stays_non_private_across_a_resume(tmp_path: Path) -> None:
    _, seeded = new_trainer(seed=3)
    seeded.step()
    _, resumed = new_trainer(seed=None)
    assert not resumed.non_private
    saved = save_checkpoint(seeded, tmp_path)
    assert marked_non_private(saved)
    load_checkpoint(resumed, saved)
    assert resumed.non_private
    assert marked_non_private(save_checkpoint(resumed, tmp_path / "resumed"))


@pytest.mark.parametrize("text", ["{}", '{"non_private": null}', '{"non_private": 0}', "[]", "{"])
def test_a_checkpoint_without_a_mark_is_not_taken_for_private(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError):
        marked_non_private(tmp_path)


def test_a_checkpoint_holds_no_random_state_and_no_pickle(tmp_path: Path) -> None:
    _, trainer = new_trainer(seed=None)
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    assert sorted(file.name for file in saved.iterdir()) == ["state.json", "state.safetensors"]
    assert set(json.loads((saved / "state.json").read_text())) == {"format", "step", "plan", "non_private", "sha256"}
    assert {name.split(":")[0] for name in state_of(trainer).tensors} == {"weight", "state"}


@pytest.mark.parametrize("damage", ["truncate", "format", "adapter"])
def test_a_checkpoint_that_cannot_be_used_is_refused(tmp_path: Path, damage: str) -> None:
    _, trainer = new_trainer()
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    if damage == "truncate":
        (saved / "state.safetensors").write_bytes(b"short")
    elif damage == "format":
        meta = json.loads((saved / "state.json").read_text())
        (saved / "state.json").write_text(json.dumps({**meta, "format": 99}))
    _, fresh = new_trainer(rank=8 if damage == "adapter" else 16)
    with pytest.raises(CheckpointError):
        load_checkpoint(fresh, saved)


@pytest.mark.parametrize(
    "meta", ["[]", "null", '{"format": 1}', '{"format": 1, "plan": []}', '{"format": 1, "plan": {}}']
)
def test_a_checkpoint_whose_json_is_well_formed_and_wrong_is_refused(tmp_path: Path, meta: str) -> None:
    _, trainer = new_trainer()
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    (saved / "state.json").write_text(meta)
    _, fresh = new_trainer()
    with pytest.raises(CheckpointError):
        load_checkpoint(fresh, saved)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 10**9}, {"step": -1}, {"step": True}, {"step": 1.0}, {"step": float("inf")}, {"step": 2},
        {"non_private": None}, {"non_private": 0}, {"plan": {"sample_rate": 0.5, "steps": 5}},
    ],
)  # fmt: skip
def test_a_checkpoint_that_says_something_else_is_refused_whole(tmp_path: Path, change: dict[str, Any]) -> None:
    _, trainer = new_trainer()
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    meta = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(meta | change))
    model, fresh = new_trainer(init=2)
    before = adapter_state(model)
    with pytest.raises(CheckpointError):
        load_checkpoint(fresh, saved)
    after = adapter_state(model)
    assert fresh.step_index == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("damage", ["nan", "missing", "shape", "unknown"])
def test_a_checkpoint_with_damaged_tensors_is_refused_whole(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    _, trainer = new_trainer()
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    tensors = load_file(saved / "state.safetensors")
    moment = next(name for name in tensors if name.startswith("state:exp_avg:"))
    if damage == "nan":
        tensors[moment] = tensors[moment] * float("nan")
    elif damage == "missing":
        del tensors[moment]
    elif damage == "shape":
        tensors[moment] = tensors[moment].flatten()[:1].clone()
    else:
        tensors["state:other:" + moment.removeprefix("state:exp_avg:")] = tensors[moment].clone()
    save_file(tensors, saved / "state.safetensors")
    meta = json.loads((saved / "state.json").read_text())
    meta["sha256"] = hashlib.sha256((saved / "state.safetensors").read_bytes()).hexdigest()
    (saved / "state.json").write_text(json.dumps(meta))
    model, fresh = new_trainer(init=2)
    before = adapter_state(model)
    with pytest.raises(CheckpointError):
        load_checkpoint(fresh, saved)
    after = adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not fresh.optimizer.state


def test_plain_sgd_keeps_nothing_and_resumes(tmp_path: Path) -> None:
    plan = replace(PLAN, optimizer="sgd", momentum=0.0)
    _, trainer = new_trainer(plan)
    trainer.step()
    _, resumed = new_trainer(plan)
    load_checkpoint(resumed, save_checkpoint(trainer, tmp_path))
    assert resumed.step_index == 1


def test_a_checkpoint_with_a_bit_that_fell_over_is_refused(tmp_path: Path) -> None:
    _, trainer = new_trainer()
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    content = bytearray((saved / "state.safetensors").read_bytes())
    content[-3] ^= 1
    (saved / "state.safetensors").write_bytes(content)
    _, fresh = new_trainer()
    with pytest.raises(CheckpointError, match="damaged: delete it"):
        load_checkpoint(fresh, saved)


def test_a_checkpoint_of_a_version_that_kept_no_digest_is_resumed(tmp_path: Path) -> None:
    _, trainer = new_trainer()
    trainer.step()
    saved = save_checkpoint(trainer, tmp_path)
    meta = json.loads((saved / "state.json").read_text())
    del meta["sha256"]
    (saved / "state.json").write_text(json.dumps(meta))
    _, fresh = new_trainer()
    load_checkpoint(fresh, saved)
    assert fresh.step_index == 1
