"""Asking the policy engine over HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from models.audit import CONSTITUTIONAL_VALIDATION, AuditEntry
from models.evaluation_api import (
    HASH_MISMATCH,
    EvaluateBatchRequest,
    EvaluateBatchResponse,
    EvaluateRequest,
    Evaluation,
)
from policies.audit.chain import normalise_time
from policies.audit.errors import EntryRejected
from policies.audit.redact import canonical_json, redact, redact_violation
from policies.clients.audit_client import bearer

EVALUATE_PATH = "/api/v1/evaluate"
BATCH_PATH = "/api/v1/evaluate/batch"
VALIDATION_ERROR = "validation_error"
"""The violation reported when there is no verdict. It is no verdict itself: ask again."""

MAX_BATCH = 64
MAX_NAME = 256
MAX_ANSWER_BYTES = 8 * 1024 * 1024
DEFAULT_TIMEOUT_S = 10.0
DEFAULT_BATCH_TIMEOUT_S = 60.0
DEFAULT_CONCURRENCY = 4

Audit = Callable[[AuditEntry], Awaitable[object]]
"""Takes an entry, durably (the audit engine, or a spool that delivers to it), or raises."""

# Only these speak of the text. Anything else (a wrong token, a proxy's answer, an engine that stops) can be mended from
# outside, and then the same text gets its verdict.
_REFUSALS = frozenset({400, 409, 413, 422})

_LOG = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=BaseModel)


class PolicyEngineUnavailable(Exception):
    """There is no verdict: the engine did not answer, or not with one. Nothing is permitted by it; ask again."""


class PolicyEngineRefused(PolicyEngineUnavailable):
    """The engine will not judge this request as it is (a wrong constitutional hash, too long, no plain text)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def is_compliant(evaluation: Evaluation, threshold: float) -> bool:
    """The client's rule: allowed, and a score of at least the threshold."""
    return evaluation.allow and math.isfinite(evaluation.confidence_score) and evaluation.confidence_score >= threshold


class PolicyEngineClient:
    """Asks for evaluations, from an event loop. Connections are kept; close it, or use it as a context manager.

    `threshold` is the lowest `confidence_score` that counts as compliant. `timeout_s` bounds one evaluation as a
    whole, `batch_timeout_s` a batch of them. `audit` receives an entry for each validation and each
    `record`, whose event text is digested with `digest_key`. Nothing is retried here but the opening of a connection,
    once.
    """

    def __init__(
        self,
        base_url: str,
        constitutional_hash: str,
        threshold: float = 0.95,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        batch_timeout_s: float = DEFAULT_BATCH_TIMEOUT_S,
        concurrency: int = DEFAULT_CONCURRENCY,
        audit: Audit | None = None,
        digest_key: bytes | None = None,
    ) -> None:
        if not 0.0 <= threshold <= 1.0:
            msg = f"the compliance threshold is {threshold}; it must lie in 0..1"
            raise ValueError(msg)
        if audit is not None and not digest_key:
            msg = "validations are to be audited without a digest key; give one, or event text would be logged"
            raise ValueError(msg)
        self._base_url = base_url
        self._hash = constitutional_hash
        self._threshold = threshold
        self._timeout_s = timeout_s
        self._batch_timeout_s = batch_timeout_s
        self._concurrency = concurrency
        self._audit = audit
        self._digest_key = digest_key or b""
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **bearer(token)},
            timeout=None,  # noqa: S113  `_post` bounds each exchange as a whole, which httpx' timeouts do not
            transport=httpx.AsyncHTTPTransport(retries=1, limits=httpx.Limits(max_keepalive_connections=concurrency)),
            trust_env=False,
        )

    async def evaluate(self, content: str, context: Mapping[str, Any] | None = None) -> Evaluation:
        """Judge one text. Raises PolicyEngineUnavailable (PolicyEngineRefused among it) where there is no verdict."""
        request = self._request(content, context)
        return self._of_ours(await self._post(EVALUATE_PATH, request, Evaluation, self._timeout_s))

    async def evaluate_many(self, items: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Evaluation]:
        """Judge many texts with their contexts; one verdict each, in their order. Raises as `evaluate`, for all.

        They travel in batches of at most 64, at most `concurrency` of them at a time.
        """
        requests = [self._request(content, context) for content, context in items]
        chunks = [requests[start : start + MAX_BATCH] for start in range(0, len(requests), MAX_BATCH)]
        free = asyncio.Semaphore(self._concurrency)

        async def judge(chunk: list[EvaluateRequest]) -> list[Evaluation]:
            async with free:
                return await self._evaluate_batch(chunk)

        # The first failure fails the call; the rest is cancelled rather than left running.
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(judge(chunk)) for chunk in chunks]
        except ExceptionGroup as failures:
            raise _first(failures) from failures
        return [evaluation for task in tasks for evaluation in task.result()]

    async def validate_constitutional(
        self,
        content: str,
        context: Mapping[str, Any] | None = None,
    ) -> tuple[bool, float, list[str]]:
        """Whether a text is compliant, its score in 0..1, its violations. Never raises, but for cancellation.

        Whatever goes wrong is `(False, 0.0, ["validation_error"])`, a verdict that could not be audited too: a
        decision takes effect only once its record is kept.
        """
        try:
            evaluation = await self.evaluate(content, context)
            verdict, extra = self._verdict(evaluation)
        except Exception as error:  # noqa: BLE001  the specification's contract: no exception, whatever happened
            _LOG.warning("no verdict from the policy engine: %s", _cause(error))
            verdict = (False, 0.0, [VALIDATION_ERROR])
            extra = {"error": type(error).__name__}
        try:
            await self._record(content, context, verdict, extra)
        except Exception as error:  # noqa: BLE001  as above
            _LOG.warning("a validation could not be audited, so it does not count: %s", _cause(error))
            return False, 0.0, [VALIDATION_ERROR]
        return verdict

    async def record(self, content: str, context: Mapping[str, Any] | None, evaluation: Evaluation) -> None:
        """Have the audit log hold a verdict of `evaluate` or `evaluate_many`.

        `validate_constitutional` does so by itself. Raises what `audit` raises; then the verdict must not count.
        """
        await self._record(content, context, *self._verdict(evaluation))

    async def record_no_verdict(self, context: Mapping[str, Any], error: Exception) -> None:
        """Have the audit log hold that there was no verdict. Raises what `audit` raises."""
        await self._record("", context, (False, 0.0, [VALIDATION_ERROR]), {"error": type(error).__name__})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _verdict(self, evaluation: Evaluation) -> tuple[tuple[bool, float, list[str]], dict[str, str]]:
        """What counts of an evaluation, and what its entry names besides."""
        compliant = is_compliant(evaluation, self._threshold)
        verdict = (compliant, evaluation.confidence_score, list(evaluation.violations))
        return verdict, {"decision_id": evaluation.decision_id, "constitution_digest": evaluation.constitution_digest}

    def _request(self, content: str, context: Mapping[str, Any] | None) -> EvaluateRequest:
        try:
            return EvaluateRequest(content=content, context=dict(context or {}), constitutional_hash=self._hash)
        except (ValidationError, TypeError, ValueError):
            # Its cause would show the event's text in a traceback.
            msg = "the text and its context cannot be sent; the content is a text and the context plain JSON values"
            raise PolicyEngineRefused(msg, 422) from None

    async def _evaluate_batch(self, requests: list[EvaluateRequest]) -> list[Evaluation]:
        request = EvaluateBatchRequest(items=requests)
        answer = await self._post(BATCH_PATH, request, EvaluateBatchResponse, self._batch_timeout_s)
        if len(answer.results) != len(requests):
            self._fail(f"answered {len(answer.results)} verdicts to {len(requests)} texts")
        return [self._of_ours(evaluation) for evaluation in answer.results]

    def _of_ours(self, evaluation: Evaluation) -> Evaluation:
        """A verdict by our constitution; one that says only that the engine holds another is none."""
        if HASH_MISMATCH in evaluation.violations:
            self._fail(f"does not hold the constitution {self._hash!r}; bring engine and caller to the same one")
        return evaluation

    async def _post(self, path: str, request: BaseModel, answer: type[Answer], timeout_s: float) -> Answer:
        try:
            body = request.model_dump_json().encode()
        except ValueError:
            raise PolicyEngineRefused("the text cannot be written as JSON; is it valid Unicode?", 422) from None
        try:
            async with asyncio.timeout(timeout_s), self._client.stream("POST", path, content=body) as response:
                found = await self._bounded(response)
        except TimeoutError as error:
            self._fail(f"did not answer within {timeout_s:g} s", error)
        except httpx.HTTPError as error:
            self._fail(f"did not answer ({type(error).__name__}); is it running?", error)
        status = response.status_code
        if status != httpx.codes.OK:
            if status in _REFUSALS:
                msg = f"the policy engine at {self._base_url} refused to judge, with status {status}"
                raise PolicyEngineRefused(msg, status)
            self._fail(f"answered with status {status}")
        try:
            # Strict: a score given as text or an `allow` of "yes" is no verdict.
            return answer.model_validate_json(found, strict=True)
        except ValidationError:
            self._fail("answered with something that is no verdict")

    async def _bounded(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                self._fail(f"answered with more than {MAX_ANSWER_BYTES} bytes")
        return bytes(data)

    def _fail(self, what: str, cause: Exception | None = None) -> NoReturn:
        raise PolicyEngineUnavailable(f"the policy engine at {self._base_url} {what}") from cause

    async def _record(
        self,
        content: str,
        context: Mapping[str, Any] | None,
        verdict: tuple[bool, float, list[str]],
        extra: dict[str, str],
    ) -> None:
        if self._audit is None:
            return
        compliant, score, violations = verdict
        given = dict(context or {})
        names = {name: given[name] for name in ("model_id", "cycle_id", "domain") if _is_name(given.get(name))}
        entry = AuditEntry.model_validate(
            {
                "entry_id": uuid4().hex,
                "event_type": CONSTITUTIONAL_VALIDATION,
                "constitutional_hash": self._hash,
                "compliance_score": score,
                "violations": [redact_violation(violation, self._digest_key) for violation in violations],
                "context": self._redacted({**given, "content": content}),
                "timestamp": normalise_time(None),
                "compliant": compliant,
                **names,
                **extra,
            },
        )
        await self._audit(entry)

    def _redacted(self, context: dict[str, Any]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = redact(context, self._digest_key)
            canonical_json(found)
        except EntryRejected:
            return {"unrepresentable": True}
        return found


def _first(failures: ExceptionGroup) -> Exception:
    for failure in failures.exceptions:
        return _first(failure) if isinstance(failure, ExceptionGroup) else failure
    return failures


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _cause(error: Exception) -> str:
    # Only our own messages are known to hold no event text.
    return str(error) if isinstance(error, PolicyEngineUnavailable) else type(error).__name__
