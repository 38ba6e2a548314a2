"""The policies decided by an Open Policy Agent server, over its REST API.

OPA loads the bundle itself (`write_bundle`, then `opa run --server --bundle DIRECTORY`); this only asks.
See https://www.openpolicyagent.org/docs/rest-api for the data API.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

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

    def __init__(
        self,
        config: OpaConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._breaker = CircuitBreaker(config.failure_threshold, config.reset_seconds, clock)
        headers = {"Content-Type": "application/json"}
        if config.token is not None:
            headers["Authorization"] = f"Bearer {config.token}"
        limits = httpx.Limits(max_connections=config.max_connections, max_keepalive_connections=config.max_connections)
        # OPA is asked directly: a proxy named in the environment must not see the facts.
        self._client = httpx.AsyncClient(
            base_url=config.url,
            headers=headers,
            limits=limits,
            timeout=config.timeout_seconds,
            transport=transport,
            trust_env=False,
        )

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
        await self._client.aclose()

    async def _ask(self, action: str, text: str, unreadable: GateReason | None) -> GateDecision:
        try:
            # httpx bounds each phase of a request; this bounds the whole.
            async with asyncio.timeout(self._config.timeout_seconds):
                response = await self._client.post(
                    DECISION_PATH,
                    params={"strict-builtin-errors": "true"},
                    content=f'{{"input":{text}}}'.encode(),
                )
        except TimeoutError:
            message = f"The policy engine did not answer within {self._config.timeout_seconds:g} s."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        except httpx.HTTPError as error:
            message = f"The policy engine could not be reached ({type(error).__name__})."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        if response.status_code != httpx.codes.OK:
            message = f"The policy engine answered with status {response.status_code}."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        return self._read(action, response, unreadable)

    def _read(self, action: str, response: httpx.Response, unreadable: GateReason | None) -> GateDecision:
        try:
            body = response.json()
        except ValueError:
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
