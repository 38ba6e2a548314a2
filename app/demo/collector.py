"""The demo's way through an OpenTelemetry Collector, where the machine has one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer

from app.embedded.collector import CollectorServer, find_collector
from app.embedded.errors import ProgramMissing
from app.embedded.stack import BrokerKind
from app.embedded.system import System
from app.topics import AUDIT_EVENTS
from otel.table import load_table

READ_WITHIN_S = 30.0


def start_collector(system: System) -> CollectorServer | None:
    """A collector in front of the system's broker; None where there is no program, and events go to the router."""
    try:
        program = find_collector()
    except ProgramMissing:
        return None
    broker = system.stack.broker
    kind: BrokerKind = "real" if broker.declares_topics else "mock"
    return system.stack.add(CollectorServer(system.run, broker.bootstrap, kind, program))


async def masks_of_collector(bootstrap: str, sent: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How often each mask stands on the collector's topic and did not in the events that were sent.

    A collector does not count what it masks, and the router finds only what it has left.
    """
    names = {pattern.name: pattern.mask.encode() for pattern in load_table().patterns}
    reader = AIOKafkaConsumer(
        AUDIT_EVENTS.name, bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    found: Counter[str] = Counter()
    async with reader, asyncio.timeout(READ_WITHIN_S):
        ends = await reader.end_offsets(reader.assignment())
        while any([await reader.position(place) < end for place, end in ends.items()]):
            for batch in (await reader.getmany(timeout_ms=300)).values():
                for record in batch:
                    found.update({name: record.value.count(mask) for name, mask in names.items()})
    told = orjson.dumps(list(sent))
    found.subtract({name: told.count(mask) for name, mask in names.items()})
    return +found
