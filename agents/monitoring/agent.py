"""The monitoring agent: runs the monitor in a Faust worker. It reads no topic."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import faust

from agents.monitoring.monitor import Monitor

OPEN_RETRY_S = 5.0

_LOG = logging.getLogger(__name__)

DepsFactory = Callable[[], AbstractAsyncContextManager[Monitor]]
"""Opens the monitor with its connections, in the worker's own event loop; see `open_monitor`."""


def register(app: faust.App, deps_factory: DepsFactory, open_retry_s: float = OPEN_RETRY_S) -> None:
    """Have a worker run the monitor from its start to its stop.

    A task, not a Faust timer: after a failure a source is left alone for longer than after a success, each by itself.
    An app that has no agents when this is called does without Kafka: Faust's consumer cannot subscribe to nothing and
    would crash. On an app with agents, register those first.
    """
    if not app.agents:
        app.boot_strategy.enable_kafka = False

    async def monitor() -> None:
        await run_monitor(deps_factory, open_retry_s)

    app.task(monitor)


async def run_monitor(deps_factory: DepsFactory, open_retry_s: float) -> None:
    """Run until cancelled. A task that raised would end the worker, so what cannot be opened yet is tried again."""
    while True:
        try:
            async with deps_factory() as monitor:
                await monitor.run()
        except Exception as error:  # noqa: BLE001  as said above
            _LOG.warning("the monitor cannot run, next try in %g s: %s", open_retry_s, type(error).__name__)
        await asyncio.sleep(open_retry_s)
