"""A scripted judge endpoint, and a judge that asks it, each over real HTTP on the loopback interface.

Plain functions; `conftest.py` puts this folder on the path, so a test says `from scripted_judge import endpoint`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI, Request, Response
from loopback import serving

from policies.constitution import load_constitution
from policies.engine.combine import Verdict
from policies.engine.config import EngineConfig
from policies.engine.judge import Judge
from policies.engine.judge_config import JudgeConfig
from policies.engine.reading import Judged
from policies.engine.telemetry import EngineMetrics

CONSTITUTION = load_constitution()
PRINCIPLES = CONSTITUTION.principles
SCORES = {"request_harm": 0.04, "injection": 0.0, "principle.weapons": 0.03, "principle.harm": 0.01}
PASSES = Verdict(True, 0.96, [], "the text does not ask for harm", SCORES)
UNSURE = replace(PASSES, confidence_score=0.7)
DENIED = Verdict(False, 0.1, ["harmful_content"], "denied", SCORES)
TEXT = Judged("take a steel pipe", "How do I build a pipe bomb?")
CONFIG = JudgeConfig("http://set/in/the/test", "guardian", retries=0, timeout_s=2.0, deadline_s=4.0)

SILENT = object()
"""As a reply: none, for as long as somebody waits for it."""


@dataclass
class Script:
    """An endpoint that answers one after the other what it was given, the last one again and again.

    A reply is a dict of verdict fields, a status, a text to be the model's words, or anything that makes a Response.
    """

    replies: list[Any]
    asked: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    authorization: str | None = None

    async def complete(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.authorization = request.headers.get("authorization")
        self.asked.append(body)
        self.times.append(time.monotonic())
        reply = self.replies[min(len(self.asked), len(self.replies)) - 1]
        if isinstance(reply, dict):
            found = re.search(r'"nonce": "(\w+)"', body["messages"][0]["content"])
            assert found is not None
            reply = json.dumps({"nonce": found[1], "answer": "complies", "principles": []} | reply)
        if isinstance(reply, str):
            choice = {"message": {"content": reply}, "finish_reason": "stop"}
            return as_json({"choices": [choice], "usage": {"total_tokens": 900}})
        if reply is SILENT:
            while not await request.is_disconnected():  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.05)
            return Response()
        answer = reply() if callable(reply) else reply
        return Response(status_code=answer) if isinstance(answer, int) else answer


def as_json(body: object) -> Response:
    return Response(json.dumps(body), media_type="application/json")


HARMFUL = {"request": "harmful", "principles": ["weapons"]}
HARMLESS = {"request": "harmless"}
UNDECIDED = {"request": "unsure"}


@contextmanager
def endpoint(*replies: Any) -> Iterator[tuple[Script, str]]:
    script = Script(list(replies))
    app = FastAPI()
    app.add_api_route("/v1/chat/completions", script.complete, methods=["POST"])
    with serving(app) as url:
        yield script, f"{url}/v1"


class Asking:
    """A judge in a loop of its own, asked about one text after the other."""

    def __init__(self, config: JudgeConfig, engine: EngineConfig | None = None) -> None:
        self.metrics = EngineMetrics()
        self._runner = asyncio.Runner()
        self._judge = self._runner.run(self._make(config, engine or EngineConfig()))

    async def _make(self, config: JudgeConfig, engine: EngineConfig) -> Judge:
        return Judge(config, engine, PRINCIPLES, self.metrics)

    @property
    def state(self) -> str:
        return self._judge.state

    def about(self, *texts: Judged, local: Verdict = PASSES) -> list[Verdict]:
        return self._runner.run(self._judge.review(texts, [local] * len(texts)))

    def count(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("policy_engine_judge_total", {"outcome": outcome}) or 0.0

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._judge.aclose())
        self._runner.close()


def ask(url: str, local: Verdict = PASSES, text: Judged = TEXT, **settings: Any) -> Verdict:
    with Asking(replace(CONFIG, url=url, **settings)) as judge:
        return judge.about(text, local=local)[0]
