"""The teacher over real HTTP: what it is asked, what it may use, and what each kind of trouble leads to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from scripted_judge import Script, as_json, endpoint

from agents.training.config import TeacherConfig
from agents.training.prompting import RevisionPrompt
from agents.training.teacher import Teacher, TeacherBudgetUsedUp, TeacherRejects, TeacherUnavailable
from agents.training.writers import WritingTask


class Account:
    """Keeps what it is told; `limit` requests may be made."""

    def __init__(self, limit: int | None = None) -> None:
        self.reserved = 0
        self.told: list[tuple[int | None, int | None]] = []
        self._limit = limit
        self._lock = threading.Lock()

    def reserve(self) -> bool:
        with self._lock:
            self.reserved += 1
            return self._limit is None or self.reserved <= self._limit

    def used(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        with self._lock:
            self.told.append((prompt_tokens, completion_tokens))


def config_of(url: str, **changes: Any) -> TeacherConfig:
    values: dict[str, Any] = {
        "url": url,
        "model": "large",
        "token": "sesame",
        "opening": "ask",
        "max_new_tokens": 64,
        "timeout_s": 5.0,
        "retries": 2,
        "concurrency": 2,
        "tokens_per_cycle": 1000,
        "prompt_price": 1.0,
        "completion_price": 2.0,
    }
    return TeacherConfig(**(values | changes))


def task(key: str, prefill: str = "") -> WritingTask:
    return WritingTask(key, RevisionPrompt(({"role": "user", "content": f"about {key}"},), prefill), key.encode() * 8)


def says(text: str, finish_reason: str = "stop", usage: dict[str, int] | None = None) -> Any:
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    told = {"prompt_tokens": 7, "completion_tokens": 5} if usage is None else usage
    return lambda: as_json({"choices": [choice], "usage": told})


def write(
    url: str, tasks: Sequence[WritingTask], account: Account | None = None, **changes: Any
) -> tuple[list[str], list[tuple[int, int]]]:
    progress: list[tuple[int, int]] = []
    teacher = Teacher(config_of(url, **changes), "Be good.", 0.7, account or Account())
    return teacher.write(tasks, lambda ready, of: progress.append((ready, of))), progress


def asked_about(script: Script) -> list[str]:
    return sorted(body["messages"][-1]["content"] for body in script.asked)


def test_each_task_is_asked_once_with_its_own_seed_and_the_use_is_told() -> None:
    account = Account()
    with endpoint(says("Better.")) as (script, url):
        answers, progress = write(url, [task("a"), task("b"), task("c")], account)
    assert answers == ["Better."] * 3
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert asked_about(script) == ["about a", "about b", "about c"]
    assert len({body["seed"] for body in script.asked}) == 3
    assert all(0 <= body["seed"] < 2**53 for body in script.asked)
    assert {body["messages"][0]["content"] for body in script.asked} == {"Be good."}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in script.asked} == {("large", 0.7, 64)}
    assert script.authorization == "Bearer sesame"
    assert (account.reserved, account.told) == (3, [(7, 5)] * 3)


def test_an_opening_is_asked_for_in_words() -> None:
    with endpoint(says("I can't help. Try this instead. And this")) as (script, url):
        answers, _ = write(url, [task("a", "I can't help.")])
    (body,) = script.asked
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][-1]["content"].endswith(
        "Begin your answer with these words and go on from them: I can't help."
    )
    # All of it: a teacher that ended by itself meant what it said.
    assert answers == ["I can't help. Try this instead. And this"]


def test_an_opening_is_handed_over_as_a_turn_to_continue() -> None:
    with endpoint(says("Try this instead. And this strays", "length")) as (script, url):
        answers, _ = write(url, [task("a", "I can't help.")], opening="continue")
    (body,) = script.asked
    assert body["messages"][-1] == {"role": "assistant", "content": "I can't help."}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert answers == ["I can't help. Try this instead."]


def test_an_answer_that_was_cut_off_ends_with_its_last_whole_sentence() -> None:
    with endpoint(says("One. Two. Thr", "length")) as (_, url):
        assert write(url, [task("a")])[0] == ["One. Two."]


def test_passing_trouble_is_asked_again_and_every_attempt_is_counted() -> None:
    account = Account()
    with endpoint(503, 429, says("Better.", usage={})) as (script, url):
        answers, _ = write(url, [task("a")], account)
    assert (answers, len(script.asked)) == (["Better."], 3)
    assert (account.reserved, account.told) == (3, [(None, None)])


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_endpoint_that_does_not_answer_leaves_the_cycle_waiting(status: int) -> None:
    with endpoint(status) as (_, url), pytest.raises(TeacherUnavailable, match=f"status {status}") as raised:
        write(url, [task("a"), task("b")], retries=0)
    assert "sesame" not in str(raised.value)


def test_an_answer_that_is_none_leaves_the_cycle_waiting() -> None:
    with endpoint(lambda: as_json({"choices": []})) as (_, url), pytest.raises(TeacherUnavailable, match="no chat"):
        write(url, [task("a")])


def test_one_refused_request_costs_its_own_answer_only() -> None:
    with endpoint(400, says("Better.")) as (script, url):
        answers, _ = write(url, [task("a"), task("b"), task("c")], concurrency=1)
    assert answers == ["", "Better.", "Better."]
    assert len(script.asked) == 3, "a refusal does not pass by asking again"


def test_a_teacher_that_refuses_everything_is_told_and_excludes_nobody() -> None:
    with endpoint(400) as (_, url), pytest.raises(TeacherRejects, match=r"refused all of 2 requests.*teacher\.model"):
        write(url, [task("a"), task("b")])


def test_the_cycles_tokens_bound_the_requests() -> None:
    with (
        endpoint(says("Better.")) as (script, url),
        pytest.raises(TeacherBudgetUsedUp, match=r"teacher\.tokens_per_cycle=1000: raise it"),
    ):
        write(url, [task(str(number)) for number in range(6)], Account(limit=3), concurrency=1)
    assert len(script.asked) == 3


def test_no_more_requests_are_under_way_than_allowed() -> None:
    under_way, most, lock = 0, 0, threading.Lock()
    gate = threading.Semaphore(0)

    def slowly() -> Any:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        gate.acquire(timeout=0.05)
        with lock:
            under_way -= 1
        return says("Better.")()

    with endpoint(slowly) as (script, url):
        write(url, [task(str(number)) for number in range(8)], concurrency=3)
    assert len(script.asked) == 8
    assert most <= 3
