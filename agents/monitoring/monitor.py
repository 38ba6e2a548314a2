"""The monitor: all sources, each polled at its own pace, and the privacy budget."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from agents.monitoring.fetch import OPTIMIZATIONS_PATH, VIOLATIONS_PATH, FetchFailed, audit_items, recent_evaluations
from agents.monitoring.metrics import FlywheelMetrics, GroupPosition, PrivacyReading
from agents.monitoring.poll import CursorStore, PositionUnreadable, SourcePoller
from models.audit import RecentOptimization, RecentViolation
from models.evaluation_api import RecentEvaluation

PRIVACY, GROUPS = "privacy", "groups"

PrivacyReader = Callable[[], Awaitable[Iterable[PrivacyReading]]]
"""Reads what every domain has left, from the ledger."""

GroupReader = Callable[[], Awaitable[Iterable[GroupPosition]]]
"""Reads from the broker how far the consumer groups are."""

Poll = Callable[[], Awaitable[object]]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MonitoringConfig:
    """Where the engines are and how often they are asked, in seconds; a failed source is asked again later."""

    policy_url: str
    audit_url: str
    policy_token: str | None = field(default=None, repr=False)
    audit_token: str | None = field(default=None, repr=False)
    interval_s: float = 15.0
    retry_interval_s: float = 60.0
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("interval_s", "retry_interval_s", "timeout_s"):
            if getattr(self, name) <= 0:
                msg = f"the monitoring agent's {name} is {getattr(self, name)}; it must be above zero"
                raise ValueError(msg)


class Monitor:
    """Runs its polls until cancelled. One that fails does not hold up the others."""

    def __init__(
        self,
        polls: Mapping[str, Poll],
        metrics: FlywheelMetrics,
        *,
        interval_s: float,
        retry_interval_s: float,
    ) -> None:
        self._polls = dict(polls)
        self._metrics = metrics
        self._interval_s = interval_s
        self._retry_interval_s = retry_interval_s
        for name in self._polls:
            metrics.begin(name)

    async def run(self) -> None:
        """Poll for ever: each source again `interval_s` after it answered, `retry_interval_s` after it failed."""
        async with asyncio.TaskGroup() as group:
            for name in self._polls:
                group.create_task(self._repeat(name), name=f"monitor-{name}")

    async def poll_once(self, name: str) -> bool:
        """Poll one source now; whether it went well. Never raises, but for cancellation."""
        try:
            await self._polls[name]()
        except Exception as error:  # noqa: BLE001  whatever it is, it must not end the monitoring
            # Only our own messages are known to hold neither secrets nor event text.
            cause = str(error) if isinstance(error, FetchFailed | PositionUnreadable) else type(error).__name__
            _LOG.warning("polling %s failed, next try in %g s: %s", name, self._retry_interval_s, cause)
            self._metrics.count_poll(name, ok=False)
            return False
        self._metrics.count_poll(name, ok=True)
        return True

    async def _repeat(self, name: str) -> None:
        while True:
            ok = await self.poll_once(name)
            await asyncio.sleep(self._interval_s if ok else self._retry_interval_s)


@asynccontextmanager
async def open_monitor(
    config: MonitoringConfig,
    cursors: CursorStore,
    metrics: FlywheelMetrics,
    privacy_reader: PrivacyReader | None = None,
    group_reader: GroupReader | None = None,
) -> AsyncIterator[Monitor]:
    """A monitor of the two engines and, with readers, of privacy budget and groups; closes what it opened."""
    timeout_s = config.timeout_s
    async with _client(config.policy_token) as policy, _client(config.audit_token) as audit:
        evaluations = SourcePoller(
            "evaluations",
            recent_evaluations(policy, config.policy_url, timeout_s),
            RecentEvaluation,
            metrics.count_evaluation,
            cursors,
            metrics,
        )
        violations = SourcePoller(
            "violations",
            audit_items(audit, config.audit_url, VIOLATIONS_PATH, timeout_s),
            RecentViolation,
            metrics.count_violation,
            cursors,
            metrics,
        )
        optimizations = SourcePoller(
            "optimizations",
            audit_items(audit, config.audit_url, OPTIMIZATIONS_PATH, timeout_s),
            RecentOptimization,
            metrics.count_optimization,
            cursors,
            metrics,
        )
        polls: dict[str, Poll] = {
            evaluations.name: evaluations.poll,
            violations.name: violations.poll,
            optimizations.name: optimizations.poll,
        }
        if privacy_reader is not None:
            polls[PRIVACY] = _privacy_poll(privacy_reader, metrics)
        if group_reader is not None:
            polls[GROUPS] = _group_poll(group_reader, metrics)
        yield Monitor(polls, metrics, interval_s=config.interval_s, retry_interval_s=config.retry_interval_s)


def _client(token: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        headers={} if token is None else {"Authorization": f"Bearer {token}"},
        timeout=None,  # noqa: S113  `fetch` bounds each exchange as a whole, which httpx' timeouts do not
        transport=httpx.AsyncHTTPTransport(retries=1),
        trust_env=False,
    )


def _privacy_poll(read: PrivacyReader, metrics: FlywheelMetrics) -> Poll:
    async def poll() -> None:
        metrics.show_privacy(await read())

    return poll


def _group_poll(read: GroupReader, metrics: FlywheelMetrics) -> Poll:
    async def poll() -> None:
        metrics.show_groups(await read())

    return poll
