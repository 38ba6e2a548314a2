"""What a judge model is asked, and what counts as its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.constitution import load_constitution
from policies.engine.judge_config import LLAMA_GUARD_CATEGORIES, JudgeConfig
from policies.engine.judge_formats import LlamaGuard, Nonces, NotUnderstood, OpenAiJson, armoured, disarmed
from policies.engine.reading import Judged

CONFIG = JudgeConfig("http://judge/v1", "m")
PRINCIPLES = load_constitution().principles
JSON = OpenAiJson(PRINCIPLES, CONFIG)
GUARD = LlamaGuard(PRINCIPLES, CONFIG)
NONCES = Nonces("fence00", "reply00")
GOOD: dict[str, Any] = {"nonce": "reply00", "request": "harmful", "answer": "complies", "principles": ["weapons"]}

TEXTS = st.text(max_size=200) | st.lists(
    st.sampled_from(
        ['"', "\\", "\n", "<|im_end|>", "[INST]", "</s>", "{", "}", "`", "#", "\u2028", "\U000e0041", "a", '\\"']
    ),
    max_size=30,
).map("".join)


@given(TEXTS, TEXTS)
def test_armoured_texts_read_back_as_they_were_and_hold_no_structure(one: str, other: str) -> None:
    line = armoured({"request": one, "answer": other})
    assert json.loads(line) == {"request": one, "answer": other}
    inside = line.removeprefix('{"request":"').removesuffix('"}')
    assert not set(inside) & set("<>[]{}|&#`")
    assert all(character.isprintable() for character in line)


@given(TEXTS)
def test_a_disarmed_text_is_one_line_without_brackets_of_control_tokens(text: str) -> None:
    line = disarmed(text)
    assert not set(line) & set("<>[]{}|\n\r\u2028")


@given(TEXTS)
def test_the_data_stays_between_its_fences(text: str) -> None:
    _, user = JSON.messages(Judged(text, text), NONCES)
    lines = user["content"].split("\n")
    assert [lines[0], lines[2], len(lines)] == ["fence00", "fence00", 4]
    assert set(json.loads(lines[1])) == {"request", "answer"}


def test_each_exchange_has_words_of_its_own() -> None:
    nonces = {word for _ in range(100) for n in [Nonces.fresh()] for word in (n.fence, n.reply)}
    assert len(nonces) == 200


def test_the_constitution_and_the_nonce_are_in_the_task_and_not_with_the_data() -> None:
    system, user = JSON.messages(Judged("take a pipe", "How do I build a bomb?"), NONCES)
    assert all(f"- {principle.id}: {principle.text}" in system["content"] for principle in PRINCIPLES)
    assert "reply00" in system["content"]
    assert "reply00" not in user["content"]
    assert "take a pipe" not in system["content"]


def test_a_request_alone_has_no_answer() -> None:
    _, user = JSON.messages(Judged("How do I build a bomb?"), NONCES)
    assert json.loads(user["content"].split("\n")[1]) == {"request": "How do I build a bomb?"}
    assert GUARD.messages(Judged("Hello"), NONCES) == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("asked", "done", "harm", "given_"),
    [
        ("harmful", "complies", 0.98, 0.98),
        ("harmful", "refuses", 0.98, 0.02),
        ("harmful", "deflects", 0.98, 0.02),
        ("harmful", "none", 0.98, 0.98),
        ("unsure", "complies", 0.5, 0.98),
        ("harmless", "refuses", 0.02, 0.02),
    ],
)
def test_a_verdict_of_the_form_is_an_opinion(asked: str, done: str, harm: float, given_: float) -> None:
    opinion = JSON.read(json.dumps(GOOD | {"request": asked, "answer": done}), NONCES)
    assert (opinion.harm, opinion.given) == pytest.approx((harm, given_))
    assert opinion.principles == {"weapons"}


NOT_THE_FORM = {
    "empty": "",
    "prose": "The text is harmless.",
    "fenced": f"```json\n{json.dumps(GOOD)}\n```",
    "prose before": f"Here you are: {json.dumps(GOOD)}",
    "two objects": json.dumps(GOOD) * 2,
    "a list": json.dumps([GOOD]),
    "no nonce": json.dumps({k: v for k, v in GOOD.items() if k != "nonce"}),
    "another nonce": json.dumps(GOOD | {"nonce": "0000000000000000"}),
    "the fence for a nonce": json.dumps(GOOD | {"nonce": "fence00"}),
    "a number for a nonce": json.dumps(GOOD | {"nonce": 5}),
    "one field more": json.dumps(GOOD | {"reason": "fine"}),
    "a field twice": '{"request": "harmless", ' + json.dumps(GOOD)[1:],
    "another verdict": json.dumps(GOOD | {"request": "safe"}),
    "a list of verdicts": json.dumps(GOOD | {"request": ["harmless"]}),
    "capitals": json.dumps(GOOD | {"answer": "Refuses"}),
    "an unknown principle": json.dumps(GOOD | {"principles": ["kindness"]}),
    "a text for principles": json.dumps(GOOD | {"principles": "weapons"}),
    "NaN": json.dumps(GOOD | {"request": float("nan")}),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("reply", NOT_THE_FORM.values(), ids=NOT_THE_FORM)
def test_anything_else_is_no_answer(reply: str) -> None:
    JSON.read(json.dumps(GOOD), NONCES)
    with pytest.raises(NotUnderstood) as failure:
        JSON.read(reply, NONCES)
    assert "harmless" not in str(failure.value)


@pytest.mark.parametrize(
    ("reply", "harm", "principles"),
    [
        ("safe", 0.02, set()),
        ("\n\nsafe\n", 0.02, set()),
        ("unsafe\nS9", 0.98, {"weapons"}),
        ("unsafe\nS1,S11", 0.98, {"harm", "self_harm"}),
        ("unsafe\n S1 , S12", 0.98, {"harm"}),
        ("unsafe\nS12", 0.02, set()),
        ("unsafe", 0.98, set()),
    ],
)
def test_llama_guard(reply: str, harm: float, principles: set[str]) -> None:
    opinion = GUARD.read(reply, NONCES)
    assert opinion.harm == pytest.approx(harm)
    assert opinion.principles == principles


@pytest.mark.parametrize(
    "reply", ["", "Safe", "safe.", "safe\nS1", "safe\nunsafe", "unsafe S1", "unsafe\nviolence", "maybe"]
)
def test_llama_guard_is_held_to_its_form(reply: str) -> None:
    with pytest.raises(NotUnderstood):
        GUARD.read(reply, NONCES)


def test_every_category_stands_for_a_principle_of_the_default_constitution() -> None:
    assert set(LLAMA_GUARD_CATEGORIES.values()) <= {principle.id for principle in PRINCIPLES}
    assert set(LLAMA_GUARD_CATEGORIES) == {f"S{number}" for number in range(1, 15)} - {"S12"}


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"url": "judge:8000"}, "url='judge:8000'"),
        ({"url": "http://judge/v1?key=1"}, "base of the API"),
        ({"model": " "}, "model is empty"),
        ({"token": ""}, "token is empty"),
        ({"weight": 1.5}, "weight=1.5"),
        ({"certainty": 0.5}, "certainty=0.5"),
        ({"deadline_s": 0.0}, "deadline_s=0.0"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"calls_per_day": -1}, "calls_per_day=-1"),
    ],
)
def test_unsound_settings_are_refused(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        JudgeConfig(**({"url": "http://judge/v1", "model": "m"} | setting))
    assert "secret" not in repr(JudgeConfig("http://judge/v1", "m", token="secret"))
