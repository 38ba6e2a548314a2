"""A teacher: a larger model behind an OpenAI-compatible endpoint, which writes revised answers in the student's place.

Event text leaves the machine here and nowhere else. Whoever makes a `Teacher` has asked the gate (`teacher_export`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from agents.training.config import TeacherConfig
from agents.training.prompting import joined
from agents.training.writers import Progress, WritingTask
from policies.clients.chat import ChatEndpoint, ChatServer, NoAnswer, Reply

# Statuses that speak of one request: a content filter, a text too long. Others speak of the endpoint or of our access.
_REFUSED_REQUEST = frozenset({400, 413, 422})
_SEED_BYTES = 6
"""A seed is a number that JavaScript can hold; some servers are written in it."""


class TeacherUnavailable(RuntimeError):
    """The teacher does not answer, or answers nonsense. Nothing is decided; the cycle waits and asks again."""


class TeacherBudgetUsedUp(RuntimeError):
    """The cycle has used the tokens that it may use. The message says how to go on."""


class TeacherRejects(RuntimeError):
    """The teacher refuses whatever it is asked: a request that it cannot read, not one that it will not answer."""


class Account(Protocol):
    """Where the use of the teacher is written down."""

    def reserve(self) -> bool:
        """Note a request that is about to be made, durably; false where the cycle's tokens are used up."""
        ...

    def used(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Note what a request used; None where the endpoint did not say."""
        ...


class Teacher:
    """Asks the endpoint for each answer, `concurrency` at a time."""

    def __init__(self, config: TeacherConfig, system_message: str, temperature: float, account: Account) -> None:
        self._config = config
        self._system = system_message
        self._temperature = temperature
        self._account = account
        self._tokens = 0
        self._answers = 0

    @property
    def name(self) -> str:
        return self._config.model

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "endpoint": self._config.url,
            "temperature": self._temperature,
            "max_new_tokens": self._config.max_new_tokens,
            "opening": self._config.opening,
        }

    @property
    def slice_size(self) -> int:
        # What a failure throws away is paid for already, so a slice is no larger than keeps the endpoint busy.
        return 4 * self._config.concurrency

    @property
    def tokens(self) -> int:
        return self._tokens

    def write(self, tasks: Sequence[WritingTask], on_progress: Progress) -> list[str]:
        """The answers; raises `TeacherUnavailable`, `TeacherBudgetUsedUp`, `TeacherRejects`."""
        return asyncio.run(self._write(tasks, on_progress))

    async def _write(self, tasks: Sequence[WritingTask], on_progress: Progress) -> list[str]:
        config = self._config
        endpoint = ChatEndpoint(
            ChatServer(config.url, config.token, config.timeout_s, config.retries, config.concurrency)
        )
        free = asyncio.Semaphore(config.concurrency)
        ready = 0

        async def one(task: WritingTask) -> str | None:
            nonlocal ready
            async with free:
                answer = await self._answer(endpoint, task)
            ready += 1
            on_progress(ready, len(tasks))
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                writing = [group.create_task(one(task)) for task in tasks]
        except* (TeacherUnavailable, TeacherBudgetUsedUp) as failed:
            raise _first(failed) from None
        finally:
            await endpoint.aclose()
        answers = [task.result() for task in writing]
        if tasks and not self._answers:
            raise TeacherRejects(
                f"the teacher at {config.url} refused all of {len(tasks)} requests as bad ones: see what "
                f"{config.model!r} accepts (teacher.model, teacher.opening, generation.temperature)"
            )
        # No answer is no compliant one: the example is left out, and the others go on.
        return [answer or "" for answer in answers]

    async def _answer(self, endpoint: ChatEndpoint, task: WritingTask) -> str | None:
        """None where this one request is refused."""
        try:
            reply = await endpoint.complete(self._body(task), _no_deadline(), self._admission())
        except NoAnswer as nothing:
            if nothing.status in _REFUSED_REQUEST:
                return None
            if nothing.why == "budget_used_up":
                raise TeacherBudgetUsedUp(str(nothing)) from None
            raise TeacherUnavailable(f"the teacher: {nothing}") from None
        await asyncio.to_thread(self._account.used, reply.prompt_tokens, reply.completion_tokens)
        self._answers += 1
        self._tokens += reply.completion_tokens or 0
        return self._read(task, reply)

    def _admission(self) -> Callable[[float], Awaitable[None]]:
        async def admit(_deadline: float) -> None:
            if not await asyncio.to_thread(self._account.reserve):
                raise NoAnswer(
                    "budget_used_up",
                    f"the cycle has used its teacher.tokens_per_cycle={self._config.tokens_per_cycle}: raise it, "
                    "or let the student revise (teacher.send_event_text=false), and open a new cycle",
                )

        return admit

    def _body(self, task: WritingTask) -> dict[str, Any]:
        messages = [dict(message) for message in task.prompt.messages]
        if not any(message["role"] == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": self._system})
        opening = task.prompt.prefill
        extra: dict[str, Any] = {}
        if opening and self._config.opening == "continue":
            messages.append({"role": "assistant", "content": opening})
            extra = {"continue_final_message": True, "add_generation_prompt": False}
        elif opening:
            messages[-1]["content"] += f"\n\nBegin your answer with these words and go on from them: {opening}"
        return {
            "model": self._config.model,
            "messages": messages,
            "temperature": self._temperature,
            "max_tokens": self._config.max_new_tokens,
            "seed": int.from_bytes(task.seed[:_SEED_BYTES]),
            "stream": False,
            **extra,
        }

    def _read(self, task: WritingTask, reply: Reply) -> str:
        if self._config.opening == "continue":
            return joined(task.prompt.prefill, reply.text)
        # A model that follows instructions needs no cutting after its opening; one that was cut off ends in mid-word.
        return reply.text.strip() if reply.finished else joined("", reply.text)


def _no_deadline() -> float:
    return time.monotonic() + 24 * 3600.0


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The budget's end before a passing fault: it will not pass."""
    found: list[BaseException] = list(group.exceptions)
    return next((error for error in found if isinstance(error, TeacherBudgetUsedUp)), found[0])
