"""What a private step costs beside the same step without privacy: CPU time by turns in one process, and peak memory.

The same model, adapter, loss, micro-batches and optimizer; only what privacy adds differs. `ghost` is Opacus' ghost
clipping, which keeps no gradient of a single example and goes backward twice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from agents.training.ml.base_model import load_model, locate_model
from agents.training.ml.dp import PrivateTrainer
from agents.training.ml.lora import LoraSpec, attach_adapter
from agents.training.ml.loss import TrainExample, collate, per_example_loss
from agents.training.ml.plan import DpPlan
from app.settings import Settings
from benchmarks.tell import tell
from benchmarks.training_peak import peak_mb

SHAPES = ((16, 128), (16, 256), (32, 128), (32, 256))
"""Examples in a step, tokens in an example."""
MICRO_BATCH = 16
STEPS = 2
"""Of a contender before the next one's turn: the time is the second's, in a process that has its memory."""
GHOST = {(16, 128), (16, 256)}
"""Shapes at which ghost clipping is measured too; it takes twice as long, and more micro-batches tell nothing new."""
RATIOS = {"private": "step", "ghost": "ghost"}
"""Contenders that are held to the plain step, and what their ratios are called."""
CPU = torch.device("cpu")


class Contender(Protocol):
    """One way to take a step over fixed examples."""

    def step(self) -> None: ...

    def close(self) -> None: ...


class Private:
    """The trainer of this project."""

    def __init__(self, model: Any, examples: list[TrainExample], pad_id: int) -> None:
        plan = DpPlan(sample_rate=1.0, steps=STEPS, noise_multiplier=1.0, micro_batch=MICRO_BATCH)
        self._trainer = PrivateTrainer(model, examples, plan, pad_id=pad_id)

    def step(self) -> None:
        self._trainer.step()

    def close(self) -> None:
        self._trainer.close()


class Plain:
    """The step without privacy: gradients of the mean loss, accumulated over the micro-batches, and Adam."""

    def __init__(self, model: Any, examples: list[TrainExample], pad_id: int) -> None:
        self._model, self._examples, self._pad = model.train(), examples, pad_id
        self._optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)

    def step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(self._examples), MICRO_BATCH):
            batch = collate(self._examples[start : start + MICRO_BATCH], self._pad, CPU)
            (per_example_loss(self._model, batch).sum() / len(self._examples)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def close(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)


class Ghost:
    """Opacus' ghost clipping, with torch's noise."""

    def __init__(self, model: Any, examples: list[TrainExample], pad_id: int) -> None:
        self._model, self._examples, self._pad = model.train(), examples, pad_id
        self._hooked = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="sum"
        )
        self._optimizer = DPOptimizerFastGradientClipping(
            torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=len(examples),
        )

    def step(self) -> None:
        starts = range(0, len(self._examples), MICRO_BATCH)
        for start in starts:
            batch = collate(self._examples[start : start + MICRO_BATCH], self._pad, CPU)
            losses = per_example_loss(self._model, batch)
            DPTensorFastGradientClipping(self._hooked, self._optimizer, losses, loss_reduction="sum").backward()
            self._optimizer.signal_skip_step(start != starts[-1])
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        self._hooked.cleanup()


CONTENDERS: dict[str, Callable[[Any, list[TrainExample], int], Contender]] = {
    "plain": Plain,
    "private": Private,
    "ghost": Ghost,
}


def made(who: str, model: Any, examples: list[TrainExample], pad_id: int) -> Contender:
    """A contender by its name."""
    return CONTENDERS[who](model, examples, pad_id)


def model_for_steps(threads: int) -> tuple[Any, int]:
    """The model with an adapter, and the id of its padding token."""
    torch.set_num_threads(threads)
    settings = Settings().training
    base, tokenizer = load_model(locate_model(settings.base_model, settings.model_cache), torch.bfloat16, CPU)
    return attach_adapter(base, LoraSpec(), seed=0), int(tokenizer.pad_token_id)


def measure(repeat: int, threads: int) -> dict[str, Any]:
    """CPU and wall seconds of each contender at each shape, medians over the rounds; and their ratios.

    A ratio is the median of the rounds' ratios: cores that others use too are slower for minutes on end, which both
    of a round feel.
    """
    found: dict[str, Any] = {"step_cpu_s": {}, "step_wall_s": {}, "step_cpu_ratio": {}, "ghost_cpu_ratio": {}}
    found |= {"step_rounds": repeat, "step_cpu_ratio_rounds": {}}
    model, pad_id = model_for_steps(threads)
    for size, width in SHAPES:
        shape = f"{size}x{width}"
        taken = _interleaved(model, examples_of(size, width), pad_id, repeat)
        for name, values in (("step_cpu_s", 0), ("step_wall_s", 1)):
            found[name][shape] = {who: round(_median(rows, values), 3) for who, rows in taken.items()}
        for who, name in RATIOS.items():
            if who in taken:
                ratios = [one[0] / plain[0] for one, plain in zip(taken[who], taken["plain"], strict=True)]
                found[f"{name}_cpu_ratio"][shape] = round(statistics.median(ratios), 3)
                if who == "private":
                    found["step_cpu_ratio_rounds"][shape] = [round(ratio, 3) for ratio in ratios]
        tell(f"{shape}: CPU s {found['step_cpu_s'][shape]}, private over plain {found['step_cpu_ratio_rounds'][shape]}")
    return found


def peaks(threads: int, only: Sequence[str] | None, known: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """The memory in use of each contender at each shape, at its highest, in MiB; and their ratios.

    `only` these shapes where some are named; the rest then stays as it is `known`.
    """
    found = dict(known) if only else {}
    for size, width in SHAPES:
        shape = f"{size}x{width}"
        if only and shape not in only:
            continue
        found[shape] = {who: round(peak_mb(who, size, width, threads), 1) for who in _contenders(size, width)}
        tell(f"{shape}: peak MB {found[shape]}")
    return {"step_peak_mb": found} | {
        f"{name}_memory_ratio": {s: round(row[who] / row["plain"], 3) for s, row in found.items() if who in row}
        for who, name in RATIOS.items()
    }


def _contenders(size: int, width: int) -> list[str]:
    return [name for name in CONTENDERS if name != "ghost" or (size, width) in GHOST]


def _interleaved(
    model: Any, examples: list[TrainExample], pad_id: int, repeat: int
) -> dict[str, list[tuple[float, float]]]:
    names = _contenders(*_shape(examples))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(repeat):
        # Who comes first changes: what a contender finds is what the one before it left.
        for name in names if turn % 2 == 0 else reversed(names):
            contender = made(name, model, examples, pad_id)
            contender.step()
            cpu, wall = time.process_time(), time.perf_counter()
            contender.step()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
            contender.close()
    return taken


def _shape(examples: list[TrainExample]) -> tuple[int, int]:
    return len(examples), len(examples[0].prompt_ids) + len(examples[0].target_ids)


def bf16_error() -> float:
    """The distance of the clipped sum over a bf16 base from that over a float32 one, relative to the latter's norm.

    16 examples of 64 tokens; B randomised, or the gradients of every A were zero.
    """
    settings = Settings().training
    path = locate_model(settings.base_model, settings.model_cache)
    sums = []
    for dtype in (torch.float32, torch.bfloat16):
        base, tokenizer = load_model(path, dtype, CPU)
        model = attach_adapter(base, LoraSpec(dropout=0.0), seed=0)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        plan = DpPlan(1.0, 1, 0.0, learning_rate=1.0, schedule="constant", optimizer="sgd", momentum=0.0)
        trainer = PrivateTrainer(model, examples_of(16, 64), plan, pad_id=int(tokenizer.pad_token_id))
        before = [weight.detach().clone() for weight in trainer.trainable.values()]
        trainer.step()
        moved = zip(trainer.trainable.values(), before, strict=True)
        sums.append(torch.cat([(weight.detach() - old).flatten() for weight, old in moved]))
        trainer.close()
    exact, rounded = sums
    return float((exact - rounded).norm() / exact.norm())


def examples_of(size: int, width: int) -> list[TrainExample]:
    """Half prompt, half target; the tokens do not matter to what is measured."""
    half = width // 2
    rows = torch.randint(100, 40_000, (size, width), generator=torch.Generator().manual_seed(size * width)).tolist()
    return [TrainExample(tuple(row[:half]), tuple(row[half:])) for row in rows]


def _median(rows: list[tuple[float, float]], index: int) -> float:
    return statistics.median(row[index] for row in rows)
