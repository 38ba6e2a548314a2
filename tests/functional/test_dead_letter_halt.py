"""A stream that nobody can read stops the router, instead of being drained into the dead letters."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
from aiokafka import AIOKafkaProducer
from systems import lag, read_topics, running, wait_until

from app.embedded.process import ProcessExited
from app.embedded.system import System
from app.roles import Role

INPUT, DEAD, TRAIL = "otel-audit-events", "audit-dead-letters", "audit-trail-events"
GROUP = "flywheel-route"
BOUND = 50


def produce(system: System, values: list[bytes]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=system.stack.broker.bootstrap, acks="all") as producer:
            # One partition: a run is counted on each.
            await asyncio.gather(*[await producer.send(INPUT, value, partition=0) for value in values])

    asyncio.run(send())


def has_exited(system: System) -> bool:
    try:
        system.processes["worker-route"].check()
    except ProcessExited as exited:
        return "code 0" not in str(exited)
    return False


def test_a_router_stops_over_a_run_of_dead_letters_and_goes_on_once_the_bound_is_raised(tmp_path: Path) -> None:
    changes = {"routing": {"dead_letters_max_run": BOUND, "batch_messages": 20}, "kafka": {"partitions": 1}}
    with running(tmp_path, "mock", None, changes) as system:
        good = [orjson.dumps({"event_id": f"good-{number}", "status": "failure"}) for number in range(30)]
        bad = [b"{no json %d" % number for number in range(400)]
        produce(system, good)
        system.start_workers([Role.ROUTE])
        bootstrap = system.stack.broker.bootstrap
        wait_until(lambda: lag(bootstrap, GROUP, (INPUT,)) == 0, "the good ones are routed")
        produce(system, bad)
        wait_until(lambda: has_exited(system), "the router stops")
        log = next(tmp_path.glob("run/**/worker-route.log")).read_text()
        assert "dead letters in a row" in log
        assert "dead_letters.max_run=50" in log
        found = read_topics(bootstrap, (DEAD, TRAIL))
        assert len(found[TRAIL]) == len(good), "what came before goes out"
        assert len(found[DEAD]) <= BOUND
        assert lag(bootstrap, GROUP, (INPUT,)) == len(bad) - len(found[DEAD])

        system.processes["worker-route"].stop()
        system.change({"routing": {"dead_letters_max_run": 0, "dead_letters_max_share": 1.0}})
        system.start_workers([Role.ROUTE])
        wait_until(lambda: lag(bootstrap, GROUP, (INPUT,)) == 0, "all is read")
        found = read_topics(bootstrap, (DEAD, TRAIL))
        assert len(found[DEAD]) == len(bad), "each of them is a dead letter once"
        assert len(found[TRAIL]) == len(good)
