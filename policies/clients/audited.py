"""Many verdicts, none of which counts before the audit log holds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from models.evaluation_api import Evaluation
from policies.clients.policy_client import (
    VALIDATION_ERROR,
    PolicyEngineClient,
    PolicyEngineRefused,
    PolicyEngineUnavailable,
)

Item = tuple[str, Mapping[str, Any]]

# So many entries are on their way to the audit engine at a time; it writes those that arrive together together.
RECORDS_AT_A_TIME = 32

_LOG = logging.getLogger(__name__)


async def evaluate_audited(client: PolicyEngineClient, items: Sequence[Item]) -> list[Evaluation]:
    """Judge many texts with their contexts, as `evaluate_many`, with an audit entry of each verdict.

    A text that the engine will not judge as it is (too long, no plain text) does not hold up the others: it comes
    back as not allowed, with `validation_error`, and is recorded so. Raises PolicyEngineUnavailable where there is no
    verdict, which one entry tells, or where a verdict could not be recorded: ask again.
    """
    try:
        verdicts = await _evaluations(client, items)
    except PolicyEngineUnavailable as error:
        try:
            await client.record_no_verdict({"texts": len(items), **_shared(items)}, error)
        except Exception as failure:  # noqa: BLE001  what went wrong first is what the caller has to know
            _LOG.warning("that there was no verdict could not be audited: %s", type(failure).__name__)
        raise
    free = asyncio.Semaphore(RECORDS_AT_A_TIME)

    async def record(item: Item, verdict: Evaluation) -> None:
        async with free:
            await client.record(*item, verdict)

    try:
        async with asyncio.TaskGroup() as group:
            for item, verdict in zip(items, verdicts, strict=True):
                group.create_task(record(item, verdict))
    except ExceptionGroup as failures:
        kinds = ", ".join(sorted({type(failure).__name__ for failure in failures.exceptions}))
        raise PolicyEngineUnavailable(f"verdicts could not be audited ({kinds}), so they do not count") from failures
    return verdicts


def _shared(items: Sequence[Item]) -> dict[str, Any]:
    """What all the texts belong to."""
    first = items[0][1]
    names = (name for name in ("type", "model_id", "cycle_id", "domain") if name in first)
    return {name: first[name] for name in names if all(context.get(name) == first[name] for _, context in items)}


async def _evaluations(client: PolicyEngineClient, items: Sequence[Item]) -> list[Evaluation]:
    try:
        return await client.evaluate_many(items)
    except PolicyEngineRefused:
        # One of them, or all together: too much for one request.
        return [await _alone(client, item) for item in items]


async def _alone(client: PolicyEngineClient, item: Item) -> Evaluation:
    try:
        return await client.evaluate(*item)
    except PolicyEngineRefused as refusal:
        _LOG.warning("a text is not judged: %s", refusal)
        return Evaluation(
            allow=False,
            confidence_score=0.0,
            violations=[VALIDATION_ERROR],
            reason=f"the policy engine will not judge this text, with status {refusal.status}",
            policy_version="",
            decision_id="",
            constitution_digest="",
            # As an answer that is none: it neither keeps the rules nor is of use.
            scores={"degenerate": 1.0, "answer_compliance": 0.0, "answer_refusal": 0.0, "answer_deflection": 0.0},
        )
