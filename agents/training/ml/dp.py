"""Differentially private training of an adapter: Opacus' parts, with noise and draws from a secure source.

Opacus' hooks give the gradient of each example, its optimizer clips them, adds the noise and divides by the
expected batch size. Replaced are its sources of randomness (see ``randomness``); added are micro-batches without a
data loader, empty Poisson draws, and a hook by which the caller accounts for a step before it runs.

What a run shows of itself is fixed by its plan: no loss, no gradient norm and no actual batch size leaves it,
because these are computed from the data without noise. Only a run on authored data reports them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from agents.training.ml.grad_sample import PerExampleGradients
from agents.training.ml.loss import TrainExample, collate, per_example_loss
from agents.training.ml.plan import DpPlan
from agents.training.ml.randomness import Keystream, RandomSource, poisson_draw
from agents.training.ml.ranks import Ranks

BeforeStep = Callable[[int], None]


class HalfPrecisionError(TypeError):
    """A model in float16, whose range per-example gradients leave."""


class NonFiniteGradientError(ArithmeticError):
    """An update holds infinities or NaN: the adapter would be unusable from here on."""


class TrainingFinishedError(RuntimeError):
    """Another step was asked for after the plan's last one."""


@dataclass(frozen=True, slots=True)
class AuthoredReport:
    """What only a run on authored data may say about a step."""

    batch: int
    mean_loss: float | None  # None: the draw was empty
    largest_contribution: float  # norm of the clipped gradient of the example with the largest


@dataclass(frozen=True, slots=True)
class StepReport:
    """A finished step. ``tokens`` is the number expected under the sample rate, not the number drawn."""

    step: int  # from 0
    tokens: int
    seconds: float
    authored: AuthoredReport | None = None


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is untyped here
    """Opacus' DP optimizer with noise from a keystream, which must be set anew for every step.

    Where several processes train together (``ranks``), their clipped sums are added up before the noise is, by the
    first of them. Opacus' ``DistributedDPOptimizer`` adds the other sums to what is noisy and rounded already; where
    they cancel out, low bits show that the noise did not cover.
    """

    keystream: Keystream | None = None
    ranks: Ranks = Ranks()

    def add_noise(self) -> None:
        """Put the clipped sum plus noise of deviation ``noise_multiplier x max_grad_norm`` into each gradient.

        The sum is formed in float64 and rounded once, so that the low bits of a float32 gradient hide
        nothing the noise did not cover (cf. Mironov 2012).
        """
        if self.ranks.size == 1:
            self._add_noise()
            return
        sums = [parameter.summed_grad for parameter in self.params]
        sizes = [part.numel() for part in sums]
        flat = self.ranks.total(torch.cat([part.flatten() for part in sums]))
        for part, total in zip(sums, torch.split(flat, sizes), strict=True):
            part.copy_(total.view_as(part))
        if self.ranks.leads:
            self._add_noise()
            flat = torch.cat([parameter.grad.flatten() for parameter in self.params])
        noisy = torch.split(self.ranks.same(flat), sizes)
        for parameter, gradient in zip(self.params, noisy, strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        self.keystream = None

    def _add_noise(self) -> None:
        if self.keystream is None:
            raise RuntimeError("a private step has no keystream: set SecureDPOptimizer.keystream before it")
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            _check_processed_flag(parameter.summed_grad)
            noisy = parameter.summed_grad.double()
            if deviation:
                noise = torch.from_numpy(self.keystream.normals(parameter.numel())).to(noisy.device)
                noisy += deviation * noise.view_as(noisy)
            parameter.grad = noisy.to(parameter.dtype).view_as(parameter)
            _mark_as_processed(parameter.summed_grad)
        self.keystream = None


class PrivateTrainer:
    """Runs the steps of a ``DpPlan`` over fixed examples, one call a step.

    ``model`` is a PEFT model whose adapter weights are float32; only they are trained. ``before_step(index)`` is
    called before a step reads any example, so that a ledger can reserve it: what it raises ends the step.
    ``seed`` repeats a run and marks it ``non_private``, as does a plan without noise. ``authored_data`` says
    that no example comes from a person, and lets ``StepReport.authored`` be filled.

    ``ranks``: the processes that train together, each with the same model, examples and plan. The first one draws
    each batch and calls ``before_step``; each works on its share of the batch, and all end with the same weights.
    ``StepReport.authored`` speaks of a process's own share.

    An exception inside ``step`` leaves the trainer unusable: go back to the last checkpoint.
    Raises ``HalfPrecisionError``, and ``ValueError`` where there is nothing to train or to train on.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[TrainExample],
        plan: DpPlan,
        *,
        pad_id: int,
        before_step: BeforeStep | None = None,
        seed: int | None = None,
        authored_data: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.plan = plan
        self.ranks = ranks or Ranks()
        self.step_index = 0
        self._examples = list(examples)
        self._pad_id = pad_id
        self._before_step = before_step
        self._source = RandomSource(seed)
        self._authored = authored_data
        self._tainted = False
        if not self._examples:
            raise ValueError("no training examples: a private run needs at least one")
        self.trainable = _trainable(model)
        # Frozen halves of the adapter belong to a checkpoint too: B means nothing beside another A.
        self.adapter = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
        self._device = next(iter(self.trainable.values())).device
        self._hooked = PerExampleGradients(model.train())
        self._model = model
        self._optimizer = SecureDPOptimizer(
            _inner_optimizer(plan, list(self.trainable.values())),
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.sample_rate * len(self._examples),
        )
        self._optimizer.ranks = self.ranks
        self._step_tokens = round(plan.sample_rate * sum(len(example) for example in self._examples))

    @property
    def non_private(self) -> bool:
        """Whether no epsilon may be stated: a fixed seed or no noise, here or before a checkpoint."""
        return self._tainted or self._source.non_private or self.plan.noise_multiplier == 0

    @property
    def finished(self) -> bool:
        """Whether the plan has no step left."""
        return self.step_index >= self.plan.steps

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer inside Opacus' wrapper: it sees clipped, noisy gradients only."""
        inner: torch.optim.Optimizer = self._optimizer.original_optimizer
        return inner

    def step(self) -> StepReport:
        """Draw a Poisson batch, clip, add noise, update. An empty draw is a step like any other.

        Raises ``TrainingFinishedError``, ``NonFiniteGradientError``, and whatever ``before_step`` raises.
        """
        if self.finished:
            raise TrainingFinishedError(f"the plan's {self.plan.steps} steps are done: save the adapter")
        index = self.step_index
        if self._before_step is not None and self.ranks.leads:
            self._before_step(index)
        started = time.perf_counter()
        drawn = self._draw(index)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(index)
        with self._repeatable_dropout(index):
            authored = self._run(drawn)
        self.step_index += 1
        return StepReport(index, self._step_tokens, time.perf_counter() - started, authored if self._authored else None)

    def close(self) -> None:
        """Take Opacus' hooks off the model, which stays as trained."""
        self._hooked.cleanup()

    def taint(self) -> None:
        """Record that the weights carry steps without valid noise: the run stays ``non_private``."""
        self._tainted = True

    def _draw(self, index: int) -> list[int]:
        """The step's Poisson batch, the same in every process; the noise of the step comes from the same stream."""
        member = torch.zeros(len(self._examples), dtype=torch.uint8)
        if self.ranks.leads:
            stream = self._source.stream(index)
            member[poisson_draw(stream, len(self._examples), self.plan.sample_rate)] = 1
            self._optimizer.keystream = stream
        drawn: list[int] = self.ranks.same(member).nonzero().flatten().tolist()
        return drawn

    def _run(self, drawn: list[int]) -> AuthoredReport:
        """Accumulate the clipped gradients of this process's share in micro-batches, then take the noisy step."""
        # Examples of like length together: padding is work too. Shares of like length: nobody waits for another.
        ordered = sorted(drawn, key=lambda index: len(self._examples[index]))[self.ranks.rank :: self.ranks.size]
        size = self.plan.micro_batch
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)] or [[]]
        total, largest = 0.0, 0.0
        for number, part in enumerate(parts):
            self._optimizer.zero_grad(set_to_none=True)
            total += self._backward(part)
            if self._authored:
                largest = max(largest, self._largest_clipped())
            self._optimizer.signal_skip_step(number < len(parts) - 1)
            self._optimizer.step()
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self.trainable.values())
        self._optimizer.zero_grad(set_to_none=True)
        if not finite:
            raise NonFiniteGradientError(
                f"step {self.step_index} left weights that are not finite: lower the learning rate, and "
                "resume from the checkpoint before it"
            )
        return AuthoredReport(len(ordered), total / len(ordered) if ordered else None, largest)

    def _backward(self, part: list[int]) -> float:
        """Fill ``grad_sample`` of every trained weight for one micro-batch; the sum of its losses."""
        if not part:
            for parameter in self.trainable.values():
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
            return 0.0
        batch = collate([self._examples[index] for index in part], self._pad_id, self._device)
        losses = per_example_loss(self._model, batch)
        with warnings.catch_warnings():
            # True of the first layer, whose input is frozen, and harmless: Opacus reads output gradients.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self._hooked.backward(losses.sum())
        # One overflowing example must not poison the sum: without it, it still counts at most the clip norm.
        broken = ~torch.isfinite(losses.detach())
        if broken.any():
            for parameter in self.trainable.values():
                parameter.grad_sample[broken] = 0.0  # type: ignore[attr-defined]
        return float(losses.detach().sum())

    def _largest_clipped(self) -> float:
        """The largest norm an example of this micro-batch contributes to the sum."""
        norms = [gradient.flatten(1).norm(dim=1) for gradient in self._optimizer.grad_samples]
        whole = torch.stack(norms).norm(dim=0)
        factors = (self.plan.max_grad_norm / (whole + 1e-6)).clamp(max=1.0)
        return float((whole * factors).max()) if len(whole) else 0.0

    @contextmanager
    def _repeatable_dropout(self, index: int) -> Iterator[None]:
        """In a seeded run, tie dropout to the step too; torch's own state is put back afterwards."""
        if self._source.seed is None:
            yield
            return
        with torch.random.fork_rng():
            purpose = f"dropout {index}" if self.ranks.leads else f"dropout {index} {self.ranks.rank}"
            torch.manual_seed(int.from_bytes(self._source.derived(purpose)[:7], "big"))
            yield


def _trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name, after checking that they can be trained privately."""
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise HalfPrecisionError(
            "the model is in float16, in which per-example gradients overflow: load it in bfloat16 or float32"
        )
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise ValueError("the model has no trainable parameter: attach an adapter first")
    wrong = next((name for name, parameter in found.items() if parameter.dtype != torch.float32), None)
    if wrong is not None:
        raise HalfPrecisionError(f"trained weight {wrong} is {found[wrong].dtype}: adapters must be float32")
    return found


def _inner_optimizer(plan: DpPlan, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if plan.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=plan.learning_rate, momentum=plan.momentum)
    return torch.optim.Adam(parameters, lr=plan.learning_rate)
