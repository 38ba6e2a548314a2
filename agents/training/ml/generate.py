"""Batched generation in which an example's answer depends on that example alone.

Two things would otherwise couple the examples of a batch. Sampling from one random stream hands each row numbers
that depend on its neighbours, so every row draws from a stream of its own. And the last bits of a matrix product
depend on the shape of the whole batch, in bf16 enough to flip a token: so every prompt is padded to a length set
by itself, only prompts of one length share a batch, and every batch has the same number of rows.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from agents.training.ml.base_model import stop_token_ids
from agents.training.ml.randomness import unit_interval

Progress = Callable[[int, int], None]

_BLOCK = 256
BUCKET = 64
"""Prompts are padded to multiples of so many tokens."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt. ``seed`` is the example's own, so that its stream is tied to nothing else."""

    key: str
    prompt_ids: tuple[int, ...]
    seed: bytes

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"request {self.key!r} has an empty prompt: render it with the chat template")


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How to choose tokens: greedily, or sampled at ``temperature`` from the ``top_p`` nucleus."""

    max_new_tokens: int = 512
    do_sample: bool = True
    temperature: float = 0.7
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.do_sample and self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}: give one above 0, or do_sample=False")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must lie in (0, 1]")


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model wrote after the prompt (after the prefill, where the prompt ended in one)."""

    key: str
    token_ids: tuple[int, ...]  # up to the end token, without it
    text: str  # as written: a prefill and its continuation join without a space between
    finished: bool  # False: cut at max_new_tokens


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Work done by a generator since it was made; end tokens count, filler rows do not."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second of generation, 0 before the first."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Generator:
    """Generates answers in batches of ``batch_size`` rows, prompts padded to multiples of ``bucket`` tokens.

    ``batch_size`` and ``bucket`` are part of what determines an answer: keep them with the results. Narrow buckets
    leave more batches half empty, and an empty row costs as much as one that writes; padding costs little.
    """

    def __init__(
        self, model: Any, tokenizer: Any, device: torch.device, batch_size: int = 32, bucket: int = BUCKET
    ) -> None:
        if batch_size < 1 or bucket < 1:
            raise ValueError(f"batch_size {batch_size} and bucket {bucket} must be at least 1")
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size
        self._bucket = bucket
        self._stops = stop_token_ids(model, tokenizer)
        self._pad = int(tokenizer.pad_token_id)
        self.stats = GenerationStats()

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        params: GenerationParams,
        on_progress: Progress | None = None,
    ) -> list[Generation]:
        """The answers, in the order of the requests. ``on_progress(done, total)`` runs after each batch."""
        answers: dict[str, Generation] = {}
        for batch in self.stream(requests, params):
            answers.update((answer.key, answer) for answer in batch)
            if on_progress is not None:
                on_progress(len(answers), len(requests))
        return [answers[request.key] for request in requests]

    def stream(self, requests: Sequence[GenerationRequest], params: GenerationParams) -> Iterator[list[Generation]]:
        """The answers a batch at a time, shortest prompts first, so that a caller can store each as it comes.

        Raises ``ValueError`` where two requests share a key.
        """
        if len({request.key for request in requests}) != len(requests):
            raise ValueError("two generation requests share a key: give each example its own")
        for padded, rows in _by_bucket(requests, self._bucket):
            for start in range(0, len(rows), self._batch_size):
                yield self._run(rows[start : start + self._batch_size], padded, params)

    @torch.inference_mode()
    def _run(self, rows: list[GenerationRequest], padded: int, params: GenerationParams) -> list[Generation]:
        started = time.perf_counter()
        filler = self._batch_size - len(rows)
        ids, mask = self._left_padded([*rows, *rows[:1] * filler], padded)
        processor = _RowSampler(rows, params, filler, stop=self._stops[0], device=self._device)
        was_training = self._model.training
        self._model.eval()
        try:
            output = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([processor]),
                generation_config=GenerationConfig(
                    max_new_tokens=params.max_new_tokens,
                    do_sample=False,
                    eos_token_id=list(self._stops),
                    pad_token_id=self._pad,
                    use_cache=True,
                ),
            )
        finally:
            self._model.train(was_training)
        written = output[: len(rows), padded:].tolist()
        answers = [self._answer(row, tokens) for row, tokens in zip(rows, written, strict=True)]
        count = sum(len(answer.token_ids) + answer.finished for answer in answers)
        self.stats = GenerationStats(self.stats.tokens + count, self.stats.seconds + time.perf_counter() - started)
        return answers

    def _left_padded(self, rows: Sequence[GenerationRequest], length: int) -> tuple[Any, Any]:
        ids = torch.full((len(rows), length), self._pad, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, length - len(row.prompt_ids) :] = torch.tensor(row.prompt_ids)
            mask[index, length - len(row.prompt_ids) :] = 1
        return ids.to(self._device), mask.to(self._device)

    def _answer(self, row: GenerationRequest, tokens: list[int]) -> Generation:
        end = next((index for index, token in enumerate(tokens) if token in self._stops), None)
        kept = tokens if end is None else tokens[:end]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        return Generation(row.key, tuple(kept), text, finished=end is not None)


def _by_bucket(requests: Sequence[GenerationRequest], bucket: int) -> Iterator[tuple[int, list[GenerationRequest]]]:
    """``(padded length, requests)``, ascending; each prompt gets at least one padding token.

    Were a batch free to hold prompts that fill it exactly, whether attention runs with a mask or without
    (another kernel, other last bits) would hang on the neighbours.
    """
    groups: defaultdict[int, list[GenerationRequest]] = defaultdict(list)
    for request in requests:
        groups[(len(request.prompt_ids) // bucket + 1) * bucket].append(request)
    for padded in sorted(groups):
        yield padded, groups[padded]


def row_uniforms(seed: bytes, count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1), 53 random bits each: SHAKE-256 of the seed."""
    return unit_interval(hashlib.shake_256(seed).digest(8 * count))


class _RowSampler(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Leaves one token possible in each row: the row's own draw by inverse CDF, or the most likely one.

    Filler rows stop at once. The caller then decodes greedily.
    """

    def __init__(
        self,
        rows: Sequence[GenerationRequest],
        params: GenerationParams,
        filler: int,
        *,
        stop: int,
        device: torch.device,
    ) -> None:
        self._params = params
        self._real = len(rows)
        self._stop = stop
        self._step = 0
        draws = np.full((len(rows) + filler, params.max_new_tokens), 0.0)
        if params.do_sample:
            for index, row in enumerate(rows):
                draws[index] = row_uniforms(row.seed, params.max_new_tokens)
        self._draws = torch.from_numpy(draws).to(device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  # its interface
        """Scores of 0 at each row's token and minus infinity elsewhere; shapes ``(rows, vocabulary)``."""
        chosen = self._draw(scores) if self._params.do_sample else scores.argmax(dim=-1, keepdim=True)
        chosen[self._real :] = self._stop
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def _draw(self, scores: torch.Tensor) -> torch.Tensor:
        # Sums need float64, the softmax does not: in float64 it took an eighth of all the time of a generation.
        weights = torch.softmax(scores / self._params.temperature, dim=-1)
        draws = self._draws[:, self._step, None]
        if self._params.top_p == 1:
            return _inverse_cdf(weights, draws)
        weights, order = weights.double().sort(dim=-1, descending=True, stable=True)
        before = weights.cumsum(dim=-1) - weights
        return order.gather(1, _inverse_cdf(weights.masked_fill(before >= self._params.top_p, 0.0), draws))


def _inverse_cdf(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The index at which each row's running sum passes ``draws`` (in [0, 1)) of its total; ``(rows, 1)``.

    First among the sums of blocks, then inside the block: the whole running sum of a vocabulary is not needed.
    """
    rows, count = weights.shape
    blocks = torch.nn.functional.pad(weights, (0, -count % _BLOCK)).view(rows, -1, _BLOCK)
    ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    point = draws * ends[:, -1:]
    block = torch.searchsorted(ends, point, right=True).clamp_(max=ends.shape[-1] - 1)
    before = torch.nn.functional.pad(ends, (1, 0)).gather(1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1).double().cumsum(dim=-1)
    within = torch.searchsorted(inside, point - before, right=True).clamp_(max=_BLOCK - 1)
    return (block * _BLOCK + within).clamp_(max=count - 1)
