"""Checkpoints and adapters on disk: safetensors and JSON, damaged with their structure in mind, or something else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agents.training.ml.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, state_of
from agents.training.ml.dp import NonFiniteGradientError, PrivateTrainer
from agents.training.ml.lora import AdapterError, LoraSpec, adapter_state, attach_adapter, load_adapter, save_adapter
from agents.training.ml.loss import TrainExample
from agents.training.ml.plan import DpPlan
from fuzz.damage import changed_json, changed_tensors
from fuzz.frame import Case, Target, check
from fuzz.values import Changer

EXAMPLES = [TrainExample((5, 6, 7 + index), (20 + index, 21)) for index in range(4)]
PLAN = DpPlan(sample_rate=0.5, steps=5, noise_multiplier=1.0, learning_rate=0.01, micro_batch=2)
SPEC = LoraSpec(r=2, target_modules=("q_proj", "v_proj"))
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X", "", 3, None]
SHAPES: list[Any] = [[], [0], [-1], [2**62, 4], [1, 1], [2**31, 2**31], "x", [1.5], [2, None], [[2]]]
MOST_TOLD = 5_000


class Canary:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def small() -> Any:
    """A base model that is made in milliseconds."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(config)


def new_trainer() -> PrivateTrainer:
    """A trainer that has done nothing."""
    return PrivateTrainer(attach_adapter(small(), SPEC, seed=1), EXAMPLES, PLAN, pad_id=2)


class CheckpointsTarget(Target):
    """A damaged file is refused and leaves what it was to be loaded into as it was; a whole one comes back equal."""

    name = "checkpoints"
    short_cases = 4000
    memory_mb = 200

    def start(self) -> None:
        """Write a whole checkpoint and a whole adapter."""
        for name in ("transformers", "peft"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        torch.set_num_threads(1)
        trainer = new_trainer()
        trainer.step()
        trainer.step()
        self.whole = self.folder / "whole"
        save_checkpoint(trainer, self.whole / "steps").rename(self.whole / "c")
        save_adapter(attach_adapter(small(), SPEC, seed=1), self.whole / "a", base_name="small")
        self.state = state_of(trainer)
        self.base = small()
        self.canary = self.folder / "ran"
        self.trainer = new_trainer()
        self.before = state_of(self.trainer)

    def case(self, draw: random.Random) -> Case:
        """Changes of the two files of a checkpoint or an adapter, told as data: their bytes differ from run to run."""
        changer = Changer(draw)
        kind = draw.choice(("checkpoint", "adapter"))
        # With a digest that is made anew, what lies behind its check is reached.
        case: Case = {"kind": kind, "json": [], "tensors": [], "anew": draw.random() < 0.8}
        for _ in range(draw.choice((0, 1, 1, 2))):
            case["json"].append(self._of_json(draw, changer, kind))
        for _ in range(draw.choice((0, 0, 1, 1, 2))):
            case["tensors"].append(self._of_tensors(draw, changer))
        return case

    def _of_json(self, draw: random.Random, changer: Changer, kind: str) -> list[Any]:
        if kind == "checkpoint":
            places = [["step"], ["format"], ["non_private"], ["plan"], ["plan", draw.choice(list(PLAN.as_record()))]]
        else:
            names = (
                "r",
                "lora_alpha",
                "peft_type",
                "target_modules",
                "base_model_name_or_path",
                "task_type",
                "bias",
                "rank_pattern",
                "alpha_pattern",
                "modules_to_save",
                "layers_to_transform",
                "auto_mapping",
                "layer_replication",
                "use_dora",
                "init_lora_weights",
                "megatron_config",
                "eva_config",
                "trainable_token_indices",
                "fan_in_fan_out",
                "exclude_modules",
                "lora_dropout",
                changer.key(),
            )
            places = [[draw.choice(names)]]
        how = draw.random()
        if how < 0.6:
            value = draw.choice(
                (changer.value(), changer.scalar(), 2**40, -1, 10**9, ["q_proj"], {"a": 1}, "all-linear")
            )
            return ["set", draw.choice(places), value]
        if how < 0.75:
            return ["remove", draw.choice(places)]
        if how < 0.8:
            return ["whole", changer.value()]
        if how < 0.85:
            return ["text", draw.choice(("", "{", "[" * 10_000, '{"a":' * 10_000, "\xff", "NaN", "{} {}"))]
        if how < 0.92:
            return ["cut", draw.random()]
        return draw.choice((["pickle"], ["absent"], ["folder"], ["zeros", draw.choice((1, 10_000_000))]))

    def _of_tensors(self, draw: random.Random, changer: Changer) -> list[Any]:
        how, which = draw.random(), draw.randrange(40)
        if how < 0.2:
            return ["header", which, "dtype", draw.choice(DTYPES)]
        if how < 0.4:
            return ["header", which, "shape", draw.choice(SHAPES)]
        if how < 0.5:
            return [
                "header",
                which,
                "data_offsets",
                draw.choice(([0, 0], [0, 2**40], [-1, 4], [9, 3], "x", [0], [0, 8])),
            ]
        if how < 0.6:
            return [
                "rename",
                which,
                draw.choice(("weight:x", "state:step", "state:a:b", "", changer.key(), "__metadata__")),
            ]
        if how < 0.65:
            return ["drop", which]
        if how < 0.72:
            return ["length", draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, 100_000_001))]
        if how < 0.8:
            return ["cut", draw.random()]
        if how < 0.88:
            return ["byte", draw.random(), draw.randrange(256)]
        if how < 0.94:
            return ["fill", which, draw.choice(("nan", "inf"))]
        return draw.choice((["pickle"], ["absent"], ["folder"], ["empty"], ["zeros", 10_000_000]))

    def run(self, case: Case) -> str:
        """Damage a copy and load it."""
        shutil.rmtree(self.folder / "tried", ignore_errors=True)
        short = case["kind"][0]
        directory = self.folder / "tried" / ("step-00000002" if short == "c" else "adapter")
        shutil.copytree(self.whole / short, directory)
        names = {"c": ("state.json", "state.safetensors"), "a": ("adapter_config.json", "adapter_model.safetensors")}
        for change in case["json"]:
            self._apply(directory / names[short][0], change)
        for change in case["tensors"]:
            self._apply(directory / names[short][1], change)
        if case.get("anew") and short == "c":
            self._digest_anew(directory)
        outcome = self._checkpoint(directory) if short == "c" else self._adapter(directory)
        check(not self.canary.exists(), "a pickle was loaded")
        return f"{case['kind']} {outcome}"

    def _digest_anew(self, directory: Path) -> None:
        try:
            meta = json.loads((directory / "state.json").read_text())
            meta["sha256"] = hashlib.sha256((directory / "state.safetensors").read_bytes()).hexdigest()
            (directory / "state.json").write_text(json.dumps(meta))
        except (OSError, ValueError, TypeError, RecursionError):
            return  # there is nothing to put it into

    def _checkpoint(self, directory: Path) -> str:
        trainer = self.trainer
        try:
            load_checkpoint(trainer, directory)
        except CheckpointError as error:
            self._refusal(str(error))
            check(_equal(state_of(trainer), self.before), "refused, and the trainer was changed")
            return "refused"
        self.trainer = new_trainer()
        check(0 <= trainer.step_index <= PLAN.steps, f"resumed at step {trainer.step_index} of {PLAN.steps}")
        told = json.loads((directory / "state.json").read_text())["non_private"]
        check(trainer.non_private is told, "what the checkpoint says of the run's privacy is lost")
        for name, parameter in trainer.adapter.items():
            check(bool(torch.isfinite(parameter).all()), f"{name} is not finite")
        steps = trainer.step_index
        if not trainer.finished:
            # A number may be so large that the step says so, and what to do.
            with contextlib.suppress(NonFiniteGradientError):
                trainer.step()
                check(trainer.step_index == steps + 1, "it does not go on")
        return "taken"

    def _adapter(self, directory: Path) -> str:
        before = {name: tensor.clone() for name, tensor in self.base.state_dict().items()}
        try:
            model = load_adapter(self.base, directory)
        except AdapterError as error:
            self._refusal(str(error))
            now = self.base.state_dict()
            check(before.keys() == now.keys(), "refused, and the base model has layers more")
            return "refused"
        state = adapter_state(model)
        check(bool(state), "an adapter without weights")
        check(all(bool(torch.isfinite(tensor).all()) for tensor in state.values()), "weights that are not finite")
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2, 3]]))
        self.base = small()
        return "taken"

    def _refusal(self, told: str) -> None:
        check(20 < len(told) < MOST_TOLD, f"a refusal of {len(told)} characters")
        check(":" in told, f"a refusal without a remedy: {told}")

    def _apply(self, path: Path, change: list[Any]) -> None:
        if not path.is_file():
            return
        kind, *more = change
        content = path.read_bytes()
        if kind == "absent":
            path.unlink()
        elif kind == "folder":
            path.unlink()
            path.mkdir()
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "pickle":
            path.write_bytes(pickle.dumps(Canary(str(self.canary))))
        elif kind == "zeros":
            path.write_bytes(b"\0" * more[0])
        elif kind == "text":
            path.write_bytes(more[0].encode("latin-1"))
        elif kind == "cut":
            path.write_bytes(content[: int(len(content) * more[0])])
        elif kind == "byte":
            at = int((len(content) - 1) * more[0]) if content else 0
            path.write_bytes(content[:at] + bytes([more[1]]) + content[at + 1 :])
        elif path.suffix == ".json":
            path.write_bytes(changed_json(content, kind, more))
        else:
            path.write_bytes(changed_tensors(content, kind, more))

    def settle(self) -> None:
        """Whole files are taken, and come back as they were saved."""
        trainer = new_trainer()
        load_checkpoint(trainer, self.whole / "c")
        check(_equal(state_of(trainer), self.state), "a checkpoint comes back as another")
        loaded = adapter_state(load_adapter(small(), self.whole / "a"))
        saved = adapter_state(attach_adapter(small(), SPEC, seed=1))
        check(all(torch.equal(loaded[name], saved[name]) for name in saved), "an adapter comes back as another")

    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """Both kinds taken and refused."""
        wanted = {f"{kind} {outcome}" for kind in ("checkpoint", "adapter") for outcome in ("taken", "refused")}
        return wanted - set(outcomes)


def _equal(one: Any, other: Any) -> bool:
    same = one.tensors.keys() == other.tensors.keys() and one.meta == other.meta
    return same and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
