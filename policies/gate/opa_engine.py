"""The policies decided by an Open Policy Agent server, over its REST API.

OPA loads the bundle itself (`write_bundle`, then `opa run --server --bundle DIRECTORY`); this only asks. It asks by
aiohttp, whose part of a decision is some 0.2 ms; httpx took 1.2 ms for the same.
See https://www.openpolicyagent.org/docs/rest-api for the data API.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from models.decision import GateDecision, GateReason
from policies.gate.answers import prepare_input, read_answer
from policies.gate.breaker import CircuitBreaker
from policies.gate.interface import POLICY_MALFORMED, POLICY_REVISION, POLICY_UNAVAILABLE, undecided

DECISION_PATH = "/v1/data/acgs/nemo/constitutional/decision"


@dataclass(frozen=True)
class OpaConfig:
    """Where OPA listens, and how long it is waited for.

    `bundle_revision` and `data_revision`, where given, are the only ones whose decisions are taken.
    """

    url: str
    token: str | None = None
    timeout_seconds: float = 1.0
    failure_threshold: int = 5
    reset_seconds: float = 5.0
    max_connections: int = 16
    bundle_revision: str | None = None
    data_revision: str | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"OPA's url is {self.url!r}; give http://HOST:PORT or https://HOST:PORT")
        if self.timeout_seconds <= 0 or self.max_connections < 1:
            raise ValueError("timeout_seconds must be above 0 and max_connections at least 1")


class OpaEngine:
    """A `PolicyEngine` that asks OPA, over kept-alive connections and behind a circuit breaker.

    Belongs to the event loop it is first used on. No decision is cached here.
    """

    def __init__(self, config: OpaConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._url = f"{config.url.rstrip('/')}{DECISION_PATH}?strict-builtin-errors=true"
        self._breaker = CircuitBreaker(config.failure_threshold, config.reset_seconds, clock)
        self._session: aiohttp.ClientSession | None = None

    @property
    def name(self) -> str:
        return "opa"

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        """See `PolicyEngine.decide`."""
        text, unreadable = prepare_input(action, facts)
        if not self._breaker.admit():
            message = f"The policy engine failed repeatedly and is left alone for {self._config.reset_seconds:g} s."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        try:
            decision = await self._ask(action, text, unreadable)
        except BaseException:
            self._breaker.abandoned()
            raise
        if decision.conclusive or decision.reasons[0].code == POLICY_REVISION:
            self._breaker.succeeded()
        else:
            self._breaker.failed()
        return decision

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, action: str, text: str, unreadable: GateReason | None) -> GateDecision:
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                status, content = await self._post(f'{{"input":{text}}}'.encode())
        except TimeoutError:
            message = f"The policy engine did not answer within {self._config.timeout_seconds:g} s."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        except (aiohttp.ClientError, OSError) as error:
            message = f"The policy engine could not be reached ({type(error).__name__})."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        if status != HTTPStatus.OK:
            message = f"The policy engine answered with status {status}."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        return self._read(action, content, unreadable)

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        if self._session is None:
            self._session = self._open()
        async with self._session.post(self._url, data=body, allow_redirects=False) as response:
            return response.status, await response.read()

    def _open(self) -> aiohttp.ClientSession:
        # Answers are short: unpacking them would cost more than their way over the wire.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._config.token is not None:
            headers["Authorization"] = f"Bearer {self._config.token}"
        return aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self._config.max_connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `_ask` bounds the whole
            trust_env=False,  # a proxy named in the environment must not see the facts
        )

    def _read(self, action: str, content: bytes, unreadable: GateReason | None) -> GateDecision:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or "result" not in body:
            message = "The policy engine's answer holds no result; load the bundle of constitutional policies."
            return undecided(action, self.name, POLICY_MALFORMED, message)
        decision_id = body.get("decision_id")
        decision = read_answer(
            action,
            self.name,
            body["result"],
            unreadable=unreadable,
            decision_id=decision_id if isinstance(decision_id, str) else None,
        )
        if decision.conclusive and not self._is_expected(decision):
            message = "The policy engine decided by other policies or data than expected; load the present bundle."
            return undecided(action, self.name, POLICY_REVISION, message)
        return decision

    def _is_expected(self, decision: GateDecision) -> bool:
        expected = (self._config.bundle_revision, self._config.data_revision)
        actual = (decision.bundle_revision, decision.data_revision)
        return all(want is None or want == have for want, have in zip(expected, actual, strict=True))
