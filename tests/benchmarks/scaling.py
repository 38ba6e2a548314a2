"""Routing scales by partitions: what a record costs all workers together, and how evenly they share the work.

    PYTHONPATH=tests python -m benchmarks.scaling [--events N] [--repeat N]      writes var/bench/scaling.json

One, two and four workers in one consumer group on eight partitions of Apache Kafka. They are warm and share the
partitions, and are held while the input is laid; CPU is that of their processes from then until all of it is committed,
so idling beside others that are still busy counts too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from faults import Fleet
from systems import lag, wait_until

from app.topics import AUDIT_EVENTS
from benchmarks.document import write
from benchmarks.expected import Expected, read_outputs
from benchmarks.messages import Form, encode
from benchmarks.meter import process_cpu_s
from benchmarks.mix import events
from benchmarks.stage import REPOSITORY, Stage, client_settings, open_stage
from benchmarks.suite import head
from benchmarks.tell import tell

RESULT = REPOSITORY / "var" / "bench" / "scaling.json"
WORKERS = (1, 2, 4)
PARTITIONS = 8
FLAT = 0.10
"""So much more may a record cost with any number of workers than with another."""
_FORM = Form.JSON_BODY
_WARMING = 10 * PARTITIONS
"""Messages that are routed before the measurement: what is done once a process, and the first claims."""
_WITHIN_S = 600.0
_SESSION_S = 60.0
"""Of a member: it must last while the input is laid before workers that are held."""


class Turn(NamedTuple):
    """One run of some workers.

    Args:
        partitions: of each worker, by name.
        records: that each worker routed, the warming ones among them.
        cpu_us: CPU microseconds of all workers together a measured record.
        seconds: from the first measured message to the last commit.
        differences: between the output topics and what must lie there.
    """

    partitions: list[int]
    records: list[int]
    cpu_us: float
    seconds: float
    differences: list[str]


def take_turn(stage: Stage, workers: int, count: int, per_message: int = 500, warming: int = _WARMING) -> Turn:
    """Route `count` events of the mix, and `warming` messages before them, with so many workers.

    A worker that does not come up, share or finish in time fails as a test does.
    """
    stage.drop([AUDIT_EVENTS.name])
    stage.clear()
    # A group of its own, so that nobody goes on where an earlier one stood.
    group = f"scaling-{workers}-{time.time_ns()}"
    stage.system.change({"kafka": {"group_prefix": group, "session_timeout_s": _SESSION_S}})
    expected = Expected(_FORM)
    source = encode(expected.watch(events(count + warming * per_message)), _FORM, per_message)
    first, rest = list(islice(source, warming)), list(source)
    fleet = Fleet(stage.system, PARTITIONS)
    fleet.start(workers)
    try:
        stage.lay(AUDIT_EVENTS.name, first)
        _wait_committed(stage, fleet)
        held = fleet.members()
        pids = [worker.pid for worker in fleet.running()]
        # All of it lies ready, as after an outage: each worker has full fetches, whatever its share of the partitions.
        for worker in fleet.running():
            worker.pause()
        measured = stage.lay(AUDIT_EVENTS.name, rest)
        cpu, began = sum(map(process_cpu_s, pids)), time.perf_counter()
        for worker in fleet.running():
            worker.go_on()
        _wait_committed(stage, fleet)
        cpu, seconds = sum(map(process_cpu_s, pids)) - cpu, time.perf_counter() - began
        records = [worker.stats()["in"] for worker in fleet.running()]
    finally:
        fleet.stop()
    differences = expected.differences(read_outputs(client_settings(stage.bootstrap)))
    if sum(records) != measured + warming * per_message:
        differences.append(f"the workers counted {sum(records)} records of {measured + warming * per_message}")
    shares = sorted(len(partitions) for partitions in held.values())
    return Turn(shares, sorted(records), cpu / measured * 1e6, seconds, differences)


def measure(stage: Stage, count: int, repeat: int) -> dict[str, Any]:
    """All numbers of workers in turn, `repeat` times; the document."""
    document = head(stage) | {"events": count, "partitions": PARTITIONS, "form": _FORM.value, "runs": repeat}
    turns: dict[int, list[Turn]] = {workers: [] for workers in WORKERS}
    for _ in range(repeat):
        for workers in WORKERS:
            turn = take_turn(stage, workers, count)
            turns[workers].append(turn)
            exact = "counts exact" if not turn.differences else f"counts WRONG: {'; '.join(turn.differences)}"
            tell(f"{workers} workers: {turn.cpu_us:.1f} us of CPU a record, partitions {turn.partitions}, {exact}")
    return document | summary(turns)


def summary(turns: dict[int, list[Turn]]) -> dict[str, Any]:
    """What goes into the document of the runs, by number of workers."""
    costs = {workers: median(turn.cpu_us for turn in taken) for workers, taken in turns.items()}
    everyone = [turn for taken in turns.values() for turn in taken]
    return {
        "workers": [
            {
                "workers": workers,
                "cpu_us_per_record": round(costs[workers], 2),
                "cpu_us_per_record_runs": [round(turn.cpu_us, 2) for turn in taken],
                "seconds": round(median(turn.seconds for turn in taken), 2),
                "partitions": taken[-1].partitions,
                "records": taken[-1].records,
                "differences": [told for turn in taken for told in turn.differences],
            }
            for workers, taken in turns.items()
        ],
        "cpu_spread": round(max(costs.values()) / min(costs.values()) - 1, 4),
        "flat": max(costs.values()) <= (1 + FLAT) * min(costs.values()),
        "balanced": all(_is_balanced(turn) for turn in everyone),
        "counts_exact": not any(turn.differences for turn in everyone),
    }


def _is_balanced(turn: Turn) -> bool:
    """Whether all partitions are held, and nobody holds two more than another."""
    return sum(turn.partitions) == PARTITIONS and max(turn.partitions) - min(turn.partitions) <= 1


def _wait_committed(stage: Stage, fleet: Fleet) -> None:
    def committed() -> bool:
        return lag(stage.bootstrap, fleet.group, [AUDIT_EVENTS.name]) == 0

    wait_until(committed, "all input is committed", _WITHIN_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 where it is not flat, not balanced or not exact."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__)
    parser.add_argument("--events", type=int, default=400_000, help="measured, of the reference mix")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each number of workers; figures are medians")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON document goes")
    asked = parser.parse_args(arguments)
    with open_stage({"kafka": {"partitions": PARTITIONS}}) as stage:
        document = measure(stage, asked.events, asked.repeat)
    write(asked.out, document)
    tell(f"spread {document['cpu_spread']:.1%}; written to {asked.out}")
    return 0 if document["flat"] and document["balanced"] and document["counts_exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
