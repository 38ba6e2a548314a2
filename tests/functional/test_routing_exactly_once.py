"""The routing worker with `routing.delivery = exactly_once`, on a real Kafka: whatever is done to it, the output topics
read with read_committed hold every expected event once.

FLYWHEEL_TEST_EOS_KILLS says how many faults fall, at least five (kill -9, a zombie that comes back after its session,
a worker that comes while another leaves, the broker stopped and killed in the middle of transactions; drawn at random,
seeded by FLYWHEEL_TEST_EOS_SEED).
FLYWHEEL_TEST_EOS_DELIVERY=at_least_once runs the same faults without the protection: then `check_once` fails.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from fault_case import Case, check_once
from fault_traffic import Traffic
from faults import Fleet, Worker
from systems import running, wait_until

KILLS = int(os.environ.get("FLYWHEEL_TEST_EOS_KILLS", "5"))
SEED = int(os.environ.get("FLYWHEEL_TEST_EOS_SEED", "12"))
DELIVERY = os.environ.get("FLYWHEEL_TEST_EOS_DELIVERY", "exactly_once")
EVENTS = max(20_000, 6_000 * KILLS)
SETTINGS = {"pii": {"router": "off"}, "routing": {"delivery": DELIVERY, "batch_messages": 500}}

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600)]


def test_faults_repeat_and_lose_nothing(tmp_path: Path) -> None:
    drawn = random.Random(SEED)
    done: Counter[str] = Counter()
    with running(tmp_path, "real", None, SETTINGS) as system:
        case = Case(system, Traffic(EVENTS, seed=SEED))
        case.start(2, rounds=2 * KILLS)
        try:
            for fault in _faults(drawn):
                case.under_way()
                _strike(case, fault, drawn)
                done[fault] += 1
            case.still_flows()
            judge, outcome = case.finish()
        finally:
            case.tell()
            case.watch.close()
        print(f"faults {dict(done)}, {outcome.records} records of {EVENTS} events at the output")
        for telling, times in list(outcome.redelivered.items())[:5]:
            print(f"telling {telling} from {judge.place(telling)} was routed at {times}")
        check_once(outcome)


def _faults(drawn: random.Random) -> list[str]:
    """Kills and the rest at random, and at least one of each."""
    others = ("zombie", "rebalance", "broker stopped", "broker killed")
    rest = [drawn.choice(("kill", "kill", "zombie", "rebalance")) for _ in range(KILLS - 1 - len(others))]
    faults = ["kill", *others, *rest]
    drawn.shuffle(faults)
    return faults


def _strike(case: Case, fault: str, drawn: random.Random) -> None:
    fleet = case.fleet
    victim = drawn.choice(fleet.running())
    if fault.startswith("broker"):
        broker = case.system.stack.broker
        _at_work(case, victim, drawn)
        (broker.stop if fault == "broker stopped" else broker.kill)()
        case.stream.burst()
        broker.start()
    elif fault == "rebalance":
        _join(fleet)
        case.stream.burst()
        victim.ask_to_stop()
        victim.wait_stopped()
    elif fault == "kill":
        _at_work(case, victim, drawn)
        victim.kill()
        _join(fleet)
    else:
        _at_work(case, victim, drawn)
        victim.pause()
        wait_until(lambda: len(fleet.members()) == 1, "the frozen worker's session ends")
        case.stream.burst()
        time.sleep(drawn.uniform(0.0, 1.0))
        victim.go_on()
    fleet.wait_shared(2)


def _at_work(case: Case, victim: Worker, drawn: random.Random) -> None:
    """Held back for a moment, it has so much to do that the fault finds it at some stage of a batch."""
    victim.pause()
    case.stream.burst()
    victim.go_on()
    time.sleep(drawn.uniform(0.02, 0.35))


def _join(fleet: Fleet) -> None:
    worker = Worker(fleet.system, f"router-{len(fleet.workers) + 1}")
    fleet.workers.append(worker)
    worker.wait_ready()
