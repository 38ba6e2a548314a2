"""The micro-batcher: shares passes, bounds what waits, survives faults."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from policies.engine.batching import MicroBatcher
from policies.engine.combine import Verdict
from policies.engine.errors import EngineBusyError
from policies.engine.reading import Judged


class GatedEvaluate:
    """Answers with the text itself as reason; every pass waits for the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.sizes: list[int] = []

    def __call__(self, texts: Sequence[Judged]) -> list[Verdict]:
        self.sizes.append(len(texts))
        self.entered.set()
        assert self.gate.wait(20)
        if any(text.content == "fault" for text in texts):
            raise RuntimeError("the model failed")
        return [Verdict(True, 1.0, [], text.content, {}) for text in texts]


async def _until_entered(evaluate: GatedEvaluate) -> None:
    assert await asyncio.to_thread(evaluate.entered.wait, 20)


async def test_requests_that_arrive_meanwhile_share_the_next_pass() -> None:
    batcher, evaluate = MicroBatcher(max_texts=8, max_waiting=64), GatedEvaluate()
    serving = asyncio.create_task(batcher.run(evaluate))
    first = asyncio.create_task(batcher.judge([Judged("first")]))
    await _until_entered(evaluate)
    later = [asyncio.create_task(batcher.judge([Judged(f"a{n}"), Judged(f"b{n}")])) for n in range(5)]
    await asyncio.sleep(0)
    assert batcher.waiting == 10
    evaluate.gate.set()
    answers = await asyncio.gather(first, *later)
    assert [verdict.reason for verdict in answers[3]] == ["a2", "b2"]
    assert evaluate.sizes == [1, 8, 2]
    serving.cancel()


async def test_too_many_waiting_are_refused_and_a_caller_that_left_harms_nobody() -> None:
    batcher, evaluate = MicroBatcher(max_texts=8, max_waiting=3), GatedEvaluate()
    serving = asyncio.create_task(batcher.run(evaluate))
    first = asyncio.create_task(batcher.judge([Judged("first")]))
    await _until_entered(evaluate)
    left = asyncio.create_task(batcher.judge([Judged("left")]))
    stays = asyncio.create_task(batcher.judge([Judged("stays")]))
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError, match="2 texts are waiting"):
        await batcher.judge([Judged("x"), Judged("y")])
    left.cancel()
    evaluate.gate.set()
    assert (await first)[0].reason == "first"
    assert (await stays)[0].reason == "stays"
    serving.cancel()


async def test_a_fault_reaches_its_callers_and_the_next_pass_works() -> None:
    batcher, evaluate = MicroBatcher(max_texts=8, max_waiting=64), GatedEvaluate()
    evaluate.gate.set()
    serving = asyncio.create_task(batcher.run(evaluate))
    with pytest.raises(RuntimeError, match="the model failed"):
        await batcher.judge([Judged("fault")])
    assert (await batcher.judge([Judged("fine")]))[0].reason == "fine"
    serving.cancel()


async def test_stopping_lets_nobody_wait_for_ever() -> None:
    batcher, evaluate = MicroBatcher(max_texts=1, max_waiting=64), GatedEvaluate()
    serving = asyncio.create_task(batcher.run(evaluate))
    running = asyncio.create_task(batcher.judge([Judged("running")]))
    await _until_entered(evaluate)
    queued = asyncio.create_task(batcher.judge([Judged("queued")]))
    await asyncio.sleep(0)
    serving.cancel()
    evaluate.gate.set()
    for task in (running, queued):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)
