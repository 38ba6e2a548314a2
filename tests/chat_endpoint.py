"""An OpenAI-compatible chat endpoint on the loopback interface: the small model, batching what comes at once.

It continues an assistant's turn as vLLM does (`continue_final_message`), and draws from the request's seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from loopback import serving

from agents.training.jobs.setup import Student
from agents.training.ml.chat import render_chat
from agents.training.ml.generate import GenerationParams, GenerationRequest

GATHER_S = 0.03
MOST_AT_ONCE = 256


@dataclass
class Served:
    """What the endpoint was asked, and with which tokens of access. While it is `locked` it lets nobody in."""

    url: str = ""
    locked: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)


class _Batcher:
    """Answers requests of equal parameters together."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._waiting: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = asyncio.Queue()

    async def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        future = asyncio.get_running_loop().create_future()
        await self._waiting.put((body, future))
        answered: dict[str, Any] = await future
        return answered

    async def run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            until = time.monotonic() + GATHER_S
            with contextlib.suppress(TimeoutError):
                while len(batch) < MOST_AT_ONCE and (left := until - time.monotonic()) > 0:
                    batch.append(await asyncio.wait_for(self._waiting.get(), left))
            bodies = [body for body, _ in batch]
            answers = await asyncio.to_thread(self._generate, bodies)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _generate(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # The number of threads belongs to the thread that asks for it.
        torch.set_num_threads(self._student.config.threads)
        kinds = {(body["max_tokens"], body["temperature"]) for body in bodies}
        answers: dict[int, dict[str, Any]] = {}
        for kind in kinds:
            mine = [number for number, body in enumerate(bodies) if (body["max_tokens"], body["temperature"]) == kind]
            most, temperature = kind
            params = GenerationParams(most, do_sample=temperature > 0, temperature=temperature or 1.0)
            requests = [self._request(str(number), bodies[number]) for number in mine]
            for request, made in zip(requests, self._student.generator().generate(requests, params), strict=True):
                answers[int(request.key)] = _completion(bodies[int(request.key)], request, made)
        return [answers[number] for number in range(len(bodies))]

    def _request(self, key: str, body: dict[str, Any]) -> GenerationRequest:
        messages = list(body["messages"])
        prefill = messages.pop()["content"] if body.get("continue_final_message") else ""
        ids = render_chat(self._student.tokenizer, messages, prefill, max_tokens=self._student.config.prompt_tokens)
        return GenerationRequest(key, tuple(ids), int(body["seed"]).to_bytes(8))


def _completion(body: dict[str, Any], request: GenerationRequest, made: Any) -> dict[str, Any]:
    prompt, written = len(request.prompt_ids), len(made.token_ids) + made.finished
    return {
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": made.text},
                "finish_reason": "stop" if made.finished else "length",
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


@contextmanager
def chat_endpoint(student: Student) -> Iterator[Served]:
    """Serve the model; yields the base URL of the API and what is asked of it."""
    served = Served()
    batcher = _Batcher(student)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    async def complete(request: Request) -> dict[str, Any]:
        if served.locked:
            raise HTTPException(401)
        body = await request.json()
        served.bodies.append(body)
        served.authorizations.add(request.headers.get("authorization"))
        return await batcher.answer(body)

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/v1/chat/completions", complete, methods=["POST"])
    with serving(app) as url:
        served.url = f"{url}/v1"
        yield served
