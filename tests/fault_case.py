"""A system whose routing workers are put under a stream while something is broken, and judged afterwards."""

from __future__ import annotations

from fault_stream import INPUT, Stream, Watch, read_all
from fault_traffic import DEAD_LETTERS, TOPICS, Judge, Outcome, Traffic
from faults import Fleet
from systems import wait_until

from app.embedded.system import System


class Case:
    """A system whose routing workers are put under a stream."""

    def __init__(self, system: System, traffic: Traffic) -> None:
        self.system = system
        self.traffic = traffic
        self.fleet = Fleet(system)
        self.stream: Stream
        self.watch: Watch
        self.counted: dict[str, int] = {}

    def start(self, workers: int, rounds: int = 2) -> None:
        """Start so many workers, then a stream that outlasts so many faults."""
        self.fleet.start(workers)
        self.watch = Watch(self.fleet.bootstrap)
        self.stream = Stream(self.fleet.bootstrap, self.traffic.messages, rounds)
        self.stream.start()

    def under_way(self, share: float = 0.0) -> None:
        """Once this share is sent: all workers route, some of it is committed, and they have their hands full."""
        self.stream.wait_sent(share)
        self.fleet.wait_progress()
        wait_until(lambda: any(self.watch.now().committed.values()), "something is committed")
        self.stream.burst()

    def still_flows(self) -> None:
        """The fault is over while events are still coming, and all workers route them."""
        assert self.stream.sent < self.stream.total, "the stream ended during the fault"
        self.fleet.wait_progress()

    def finish(self) -> tuple[Judge, Outcome]:
        """Let the stream end and be routed, stop the workers, and judge what came out."""
        self.stream.finish()
        self.watch.wait_done()
        self.counted = {name: self.fleet.total(name) for name in ("in", "routed", "redelivered", "claim_retries")}
        self.fleet.stop()
        assert self.watch.now().lag == 0, "the stop took back what was committed"
        self.watch.check()
        topics = read_all(self.fleet.bootstrap, [INPUT, *TOPICS.values(), DEAD_LETTERS])
        judge = Judge(self.traffic, topics[INPUT])
        outcome = judge.outcome(topics)
        print(f"{outcome.records} records, {len(outcome.redelivered)} redelivered, {len(outcome.doubles)} doubles")
        return judge, outcome

    def tell(self) -> None:
        """Print how things stand, for whoever reads of a failure."""
        print(f"{self.stream.sent} of {self.stream.total} sent; {self.counted}; members {self.fleet.members()}")
        print(self.watch.now())
        for worker in self.fleet.running():
            print(worker.name, worker.member, worker.stats())


def check_once(outcome: Outcome) -> None:
    """Nothing came twice at all."""
    assert not outcome.redelivered, f"{len(outcome.redelivered)} tellings came twice: {list(outcome.redelivered)[:5]}"
    assert not outcome.dead_again, f"{len(outcome.dead_again)} dead letters came twice: {outcome.dead_again[:5]}"
    assert not outcome.doubles, f"{len(outcome.doubles)} duplicates were routed: {list(outcome.doubles)[:5]}"
