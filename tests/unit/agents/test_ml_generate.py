"""Batched generation: an example's answer is the same whatever shares its batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from agents.training.ml.base_model import BUNDLED_MODEL, load_model, locate_model  # noqa: E402
from agents.training.ml.chat import render_chat  # noqa: E402
from agents.training.ml.generate import (  # noqa: E402
    GenerationParams,
    GenerationRequest,
    Generator,
    row_uniforms,
)

pytestmark = pytest.mark.torch

CACHE = Path(__file__).parents[3] / "var" / "cache" / "models"
CPU = torch.device("cpu")
SAMPLED = GenerationParams(max_new_tokens=6)
GREEDY = GenerationParams(max_new_tokens=6, do_sample=False)
QUESTIONS = [
    "Hi",
    "How do I bake bread?",
    "Why is the sky blue, and why does it turn red in the evening?",
    "Name three fruits.",
    "Write one line about rain.",
    "Explain photosynthesis to a child in one short sentence, please.",
]


class WordTokenizer:
    """Tokens are numbers; the real tokenizer is tested with the real model."""

    eos_token_id = 2
    pad_token_id = 2

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(str(token) for token in tokens if token != 2 or not skip_special_tokens)


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def request(index: int, length: int = 5) -> GenerationRequest:
    prompt = tuple(5 + (index * 7 + position) % 40 for position in range(length))
    return GenerationRequest(str(index), prompt, f"seed {index}".encode())


def test_answers_come_in_the_order_of_the_requests_with_progress(tiny: Any) -> None:
    requests = [request(index, 3 + 9 * (index % 4)) for index in range(11)]
    seen: list[tuple[int, int]] = []
    generator = Generator(tiny, WordTokenizer(), CPU, batch_size=4, bucket=8)
    answers = generator.generate(requests, SAMPLED, lambda done, total: seen.append((done, total)))
    assert [answer.key for answer in answers] == [str(index) for index in range(11)]
    assert seen[-1] == (11, 11)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    written = sum(len(answer.token_ids) + answer.finished for answer in answers)
    assert generator.stats.tokens == written
    assert generator.stats.tokens_per_second > 0


def test_greedy_answers_are_what_the_model_alone_would_choose(tiny: Any) -> None:
    requests = [request(index, 3 + 6 * index) for index in range(5)]
    answers = Generator(tiny, WordTokenizer(), CPU, batch_size=4, bucket=8).generate(requests, GREEDY)
    for asked, answer in zip(requests, answers, strict=True):
        ids = list(asked.prompt_ids)
        for _ in range(GREEDY.max_new_tokens):
            with torch.no_grad():
                ids.append(int(tiny(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected = ids[len(asked.prompt_ids) :]
        assert list(answer.token_ids) == (expected[: expected.index(2)] if 2 in expected else expected)


def test_neighbours_and_order_do_not_change_an_answer(tiny: Any) -> None:
    requests = [request(index, 4 + index % 3) for index in range(10)]
    generator = Generator(tiny, WordTokenizer(), CPU, batch_size=4, bucket=8)
    together = {answer.key: answer for answer in generator.generate(requests, SAMPLED)}
    for chosen in (requests[::-1], requests[3:4], requests[1::2]):
        assert all(answer == together[answer.key] for answer in generator.generate(chosen, SAMPLED))


def test_the_seed_is_the_examples_own(tiny: Any) -> None:
    generator = Generator(tiny, WordTokenizer(), CPU, batch_size=4, bucket=8)
    same = [replace(request(0), key=key) for key in "ab"]
    first, second = generator.generate(same, SAMPLED)
    assert first.token_ids == second.token_ids
    reseeded = [replace(request(0), key=str(seed), seed=bytes([seed])) for seed in range(8)]
    assert len({answer.token_ids for answer in generator.generate(reseeded, SAMPLED)}) > 1


def test_sampled_tokens_follow_the_models_distribution(tiny: Any) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    count, temperature = 1_600, 0.2
    requests = [replace(request(0), key=str(index), seed=index.to_bytes(4, "big")) for index in range(count)]
    params = GenerationParams(max_new_tokens=1, temperature=temperature)
    answers = Generator(tiny, WordTokenizer(), CPU, batch_size=400).generate(requests, params)
    drawn = Counter(answer.token_ids[0] if answer.token_ids else 2 for answer in answers)
    with torch.no_grad():
        logits = tiny(input_ids=torch.tensor([request(0).prompt_ids])).logits[0, -1]
    expected = torch.softmax(logits.double() / temperature, -1).numpy() * count
    common = [token for token in range(50) if expected[token] >= 5]
    rest = count - sum(drawn[token] for token in common)
    observed = [*(drawn[token] for token in common), rest]
    wanted = [*expected[common], count - expected[common].sum()]
    assert len(common) > 5
    assert scipy_stats.chisquare(observed, wanted).pvalue > 1e-6


def test_a_small_nucleus_is_greedy(tiny: Any) -> None:
    generator = Generator(tiny, WordTokenizer(), CPU, batch_size=4)
    requests = [request(index) for index in range(4)]
    nucleus = generator.generate(requests, replace(SAMPLED, top_p=1e-6))
    assert nucleus == generator.generate(requests, GREEDY)


def test_an_answer_ends_at_the_end_token_and_does_not_hold_it(tiny: Any) -> None:
    generator = Generator(tiny, WordTokenizer(), CPU, batch_size=8)
    requests = [replace(request(0), key=str(seed), seed=bytes([seed])) for seed in range(64)]
    answers = generator.generate(requests, GenerationParams(max_new_tokens=60, temperature=3.0))
    assert any(answer.finished for answer in answers)
    for answer in answers:
        assert 2 not in answer.token_ids
        assert answer.finished == (len(answer.token_ids) < 60)


def test_streams_are_uniform_and_fixed_by_the_seed() -> None:
    numbers = row_uniforms(b"x", 50_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / (12 * 50_000) ** 0.5
    assert (row_uniforms(b"x", 10) == numbers[:10]).all()  # a longer answer begins like a shorter one
    assert (row_uniforms(b"y", 10) != numbers[:10]).any()


def test_wrong_requests_and_parameters_are_refused(tiny: Any) -> None:
    generator = Generator(tiny, WordTokenizer(), CPU)
    with pytest.raises(ValueError, match="share a key"):
        generator.generate([request(0), request(0)], GREEDY)
    with pytest.raises(ValueError, match="empty prompt"):
        GenerationRequest("a", (), b"")
    for changes in ({"max_new_tokens": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            GenerationParams(**changes)
    with pytest.raises(ValueError, match="batch_size"):
        Generator(tiny, WordTokenizer(), CPU, batch_size=0)


@pytest.fixture(scope="module")
def real() -> tuple[Any, Any]:
    pytest.importorskip("gguf")
    return load_model(locate_model(BUNDLED_MODEL, CACHE), torch.bfloat16, CPU)


@pytest.mark.parametrize("sampled", [True, False])
def test_the_real_models_answers_are_bit_equal_whatever_shares_the_batch(real: tuple[Any, Any], sampled: bool) -> None:
    model, tokenizer = real
    requests = [
        GenerationRequest(
            f"{index}",
            tuple(render_chat(tokenizer, [{"role": "user", "content": QUESTIONS[index % 6] + "!" * index}])),
            f"{index}".encode(),
        )
        for index in range(10)
    ]
    generator = Generator(model, tokenizer, CPU, batch_size=8, bucket=16)
    params = GenerationParams(max_new_tokens=10, do_sample=sampled)
    together = {answer.key: answer for answer in generator.generate(requests, params)}
    for chosen in (requests[1:2], requests[::-1], requests[::2]):
        for answer in generator.generate(chosen, params):
            assert answer == together[answer.key]
    assert "<|" not in "".join(answer.text for answer in together.values())


def test_the_real_model_continues_a_prefill(real: tuple[Any, Any]) -> None:
    model, tokenizer = real
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tuple(render_chat(tokenizer, asked, "The capital of France is"))
    generator = Generator(model, tokenizer, CPU, batch_size=2)
    answer = generator.generate([GenerationRequest("a", prompt, b"")], GREEDY)[0]
    assert answer.text.startswith(" Paris")
