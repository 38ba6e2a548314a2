"""The routing worker under faults, on a real Kafka: nothing lost, nothing twice but what a kill found in flight.

Each case lets a stream flow through real worker processes and breaks something in the middle. How many records flow
says FLYWHEEL_TEST_FAULT_EVENTS: 200,000 by hand, fewer in the plain run, by the same code. Whatever the fault, the
judge (`fault_traffic.py`) fails a case in which an event is lost, changed, on a wrong topic or out of its key's order,
and `Case.finish` one in which counters do not add up, a committed offset goes back or a stop is not graceful.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_case import Case, check_once
from fault_stream import PARTITIONS, Seen
from fault_traffic import Judge, Outcome, Traffic
from systems import running, wait_until

EVENTS = int(os.environ.get("FLYWHEEL_TEST_FAULT_EVENTS", "40000"))
KILLS = max(2, EVENTS // 40_000)
TURNS = max(4, EVENTS // 20_000)
SETTINGS = {"pii": {"router": "off"}}
REDIS_AWAY_S = 20.0
BATCHES = 2
"""A worker has at most so many batches in hand, published or not, whose offsets are not committed: a kill repeats no
more than these, all or in part, with the same event ids, for their claims name them as owners."""
NOTICED_S = 3.0
"""A worker that was frozen finds its session gone with its next heartbeat, which is sent every 1.5 s; what it routes
until then, its heir has routed too."""

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    """The stream that every case sends, with all its messages made."""
    made = Traffic(EVENTS, seed=20)
    assert made.messages
    return made


@dataclass(frozen=True)
class Fault:
    """What was in flight at a fault.

    Args:
        began: when, in Unix seconds.
        over: when all that was hit was back, or gone for good.
        seen: offsets that were committed when it began, and log ends when it was over.
        partitions: of the input topic; those of the workers it hit.
        batches: how many batches routed before it may come again.
    """

    began: float
    over: float
    seen: Seen
    partitions: set[int]
    batches: int

    def has_in_flight(self, partition: int, offset: int) -> bool:
        """Whether a message had arrived and was not committed."""
        return partition in self.partitions and self.seen.committed[partition] <= offset < self.seen.ends[partition]


@pytest.fixture
def case(tmp_path: Path, traffic: Traffic) -> Iterator[Case]:
    """A system with broker and Redis, and no workers yet."""
    with running(tmp_path, "real", None, SETTINGS) as system:
        made = Case(system, traffic)
        try:
            yield made
        finally:
            if hasattr(made, "stream"):
                made.tell()
                made.watch.close()


def check_repeats(judge: Judge, outcome: Outcome, faults: list[Fault]) -> None:
    """What came twice had been in flight at a fault, in so many batches at most, and was no other telling."""
    assert not outcome.doubles, f"{len(outcome.doubles)} duplicates were routed: {list(outcome.doubles)[:5]}"
    batches: dict[float, Fault] = {}
    for telling, times in outcome.redelivered.items():
        place = judge.place(telling)
        hit = [fault for fault in faults if times[0] <= fault.over and fault.has_in_flight(*place)]
        assert hit, f"telling {telling} at {place} came twice, at {times}, and was in flight at none of {faults}"
        batches[times[0]] = hit[0]
    for telling in outcome.dead_again:
        assert any(fault.has_in_flight(*judge.place(telling)) for fault in faults), f"dead letter {telling} came twice"
    for fault in faults:
        found = [at for at, hit_at in batches.items() if hit_at is fault]
        before = sum(at <= fault.began for at in found)
        print(f"batches repeated: {before} from before the fault, {len(found) - before} from within")
        assert before <= fault.batches, f"{before} batches came twice after {fault}"


def test_kill_9_of_one_of_two_workers(case: Case) -> None:
    case.start(1, rounds=2 * KILLS)
    moment = random.Random(EVENTS)
    faults: list[Fault] = []
    for _ in range(KILLS):
        case.fleet.start()
        killed = case.fleet.running()[-1]
        partitions = case.fleet.partitions(killed)
        case.under_way(0.2 / KILLS)
        # Held back for a moment, it has so much to do that the kill finds it at work, at some stage of a batch.
        killed.pause()
        case.stream.burst()
        killed.go_on()
        time.sleep(moment.uniform(0.05, 0.35))
        killed.kill()
        at, seen = time.time(), case.watch.now()
        faults.append(Fault(at, at, seen, partitions, BATCHES))
        wait_until(lambda: case.watch.now().waiting(partitions) > 0, "messages wait for an heir")  # noqa: B023
    case.fleet.wait_shared(1)
    case.still_flows()
    judge, outcome = case.finish()

    check_repeats(judge, outcome, faults)


def test_scaling_up_and_down_repeats_nothing(case: Case) -> None:
    case.start(1, rounds=3)
    for _ in range(2):
        case.under_way(0.1)
        case.fleet.start()
    for left in (2, 1):
        case.under_way()
        leaving = case.fleet.running()[0]
        leaving.ask_to_stop()
        leaving.wait_stopped()
        case.fleet.wait_shared(left)
    case.still_flows()
    _, outcome = case.finish()

    check_once(outcome)


def test_workers_that_take_turns_repeat_nothing(case: Case) -> None:
    case.start(1, rounds=TURNS)
    for turn in range(TURNS):
        case.under_way()
        case.fleet.start()
        case.stream.burst()
        leaving = case.fleet.running()[turn % 2]  # the one that has been there, or the one that just came
        leaving.ask_to_stop()
        leaving.wait_stopped()
        case.fleet.wait_shared(1)
    case.still_flows()
    _, outcome = case.finish()

    check_once(outcome)


def test_broker_restarts(case: Case) -> None:
    case.start(2)
    broker = case.system.stack.broker
    faults: list[Fault] = []
    for share, end in ((0.2, broker.stop), (0.4, broker.kill)):
        case.under_way(share)
        before = case.watch.now()
        began = time.time()
        end()
        case.stream.burst()
        broker.start()
        case.fleet.wait_shared(2)
        case.still_flows()
        # A broker that was killed has forgotten the group's members by the time it serves again. What they route until
        # they join anew cannot be committed, and comes again.
        seen = Seen(before.committed, case.watch.now().ends)
        faults.append(Fault(began, time.time(), seen, set(range(PARTITIONS)), 2 * BATCHES))
    judge, outcome = case.finish()

    check_repeats(judge, outcome, faults)


def test_redis_frozen_for_20_seconds(case: Case) -> None:
    case.start(2)
    redis = case.system.stack.redis.process
    assert redis is not None
    assert redis.pid is not None
    case.under_way(0.3)
    os.kill(redis.pid, signal.SIGSTOP)
    back = time.monotonic() + REDIS_AWAY_S
    for worker in case.fleet.running():
        worker.wait_logged("the worker waits")
    waiting = case.fleet.total("in")
    wait_until(lambda: time.monotonic() >= back, "Redis has been away long enough")
    assert case.fleet.total("in") == waiting, "events went past the claims"
    os.kill(redis.pid, signal.SIGCONT)
    case.still_flows()
    _, outcome = case.finish()

    check_once(outcome)
    assert case.counted["claim_retries"] > 0
    assert (case.counted["in"], case.counted["routed"]) == (EVENTS, outcome.records)


def test_redis_loses_its_data(case: Case) -> None:
    case.start(2)
    redis = case.system.stack.redis
    case.under_way(0.4)
    redis.kill()
    seen = case.watch.now()
    for worker in case.fleet.running():
        worker.wait_logged("the worker waits")
    redis.start()
    case.still_flows()
    judge, outcome = case.finish()

    assert not outcome.redelivered
    assert not outcome.dead_again
    assert (case.counted["in"], case.counted["routed"]) == (EVENTS, outcome.records)
    assert outcome.doubles, "the claims were not lost: nothing was tested"
    for event_id, tellings in outcome.doubles.items():
        assert len(tellings) == 2, f"{event_id} was routed {len(tellings)} times over one loss"
        places = [judge.place(telling) for telling in tellings]
        assert any(offset < seen.ends[number] for number, offset in places), f"{event_id}: twice after the loss"
        assert any(offset >= seen.committed[number] for number, offset in places), f"{event_id}: twice before the loss"


def test_frozen_worker_comes_back_after_its_session(case: Case) -> None:
    case.start(1)
    case.fleet.start()
    heir, frozen = case.fleet.running()
    partitions = case.fleet.partitions(frozen)
    case.under_way(0.2)
    frozen.pause()
    frozen_at, seen = time.time(), case.watch.now()
    wait_until(lambda: set(case.fleet.members()) == {heir.member}, "the frozen worker's session ends")

    def taken_over() -> bool:
        committed = case.watch.now().committed
        return all(committed[number] > seen.committed[number] for number in partitions)

    wait_until(taken_over, "the heir routes the frozen worker's partitions")
    frozen.go_on()
    back_at = time.time()
    case.fleet.wait_shared(2)
    case.still_flows()
    judge, outcome = case.finish()

    assert not outcome.doubles
    before = {times[0] for times in outcome.redelivered.values() if times[0] <= frozen_at}
    assert len(before) <= BATCHES, "more came twice than the frozen worker had in flight"
    for telling in (*outcome.redelivered, *outcome.dead_again):
        partition, offset = judge.place(telling)
        assert partition in partitions, f"telling {telling} came twice from another's partition {partition}"
        assert offset >= seen.committed[partition], f"telling {telling} came twice, though committed"
    for telling, times in outcome.redelivered.items():
        late = any(back_at <= at <= back_at + NOTICED_S for at in times)
        assert late or times[0] in before, f"telling {telling} was routed at {times}, frozen {frozen_at}..{back_at}"
