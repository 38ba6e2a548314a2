"""`make soak`: a router and curation under a steady load; memory, files, threads, tasks and latency must stay flat."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import orjson
import redis
import sqlalchemy as sa
from benchmarks.steady import STAMP
from confluent_kafka import Consumer, TopicPartition
from fault_stream import PARTITIONS, QUIET, Watch
from pipelines import CURATED, Pipeline
from systems import lag, running, stats, wait_until

from app.embedded.process import ManagedProcess
from app.embedded.system import System
from app.roles import Role
from app.store.tables import examples
from chaos import results
from chaos.flatness import Verdict, judge

TESTS = Path(__file__).resolve().parents[1]
EVERY_S = 4.0
MOST_LATE_S = 5.0
"""A producer that is later than that has not held its rate, and what was measured is of another one."""
READ = "constitutional-violations"
TOLERANCES = {
    "memory_mb": (0.10, 15.0),
    "open_files": (0.05, 4.0),
    "threads": (0.05, 2.0),
    "tasks": (0.25, 20.0),
    "latency_ms": (0.5, 100.0),
}
"""By what a series may rise after the warm-up: a share of its mean, or so much in its own unit.

Tasks come and go with what is in flight.
"""
Sample = dict[str, float]


def run(folder: Path, seconds: int, rate: int) -> dict[str, Any]:
    """Load the system for so many seconds and sample it; figures, with a `Verdict` for each series that must be flat.

    `most_late_s`: by how much the producer fell behind its timetable. Raises `AssertionError` where an event did not
    arrive.
    """
    with running(folder, "real", None, {"pii": {"router": "off"}}) as system:
        system.start_workers([Role.ROUTE, Role.CURATE])
        bootstrap = system.stack.broker.bootstrap
        _open_connections(system)
        pipeline, watch = Pipeline(system, folder), Watch(bootstrap)
        workers = {name: system.processes[f"worker-{name}"] for name in ("route", "curate")}
        command = [sys.executable, "-m", "chaos.soak_load", bootstrap, str(rate), str(seconds)]
        # The tests are no package: a process of its own finds them by the path alone.
        env = os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        try:
            samples = list(_samples(load, pipeline, workers))
            told, _ = load.communicate(timeout=120)
            assert load.returncode == 0, "the load failed"
            watch.wait_done()
            wait_until(lambda: lag(bootstrap, "flywheel-curate", CURATED) == 0, "curation has taken everything")
            counted = stats(system, Role.ROUTE, "routing")
            assert counted["in"] == rate * seconds, f"{counted['in']} of {rate * seconds} events came to the router"
            watch.check()
        finally:
            load.kill()
            watch.close()
            pipeline.database.close()
    times = [sample.pop("at") for sample in samples]
    series = {name: [sample[name] for sample in samples] for name in samples[0]}
    verdicts = {
        name: judge(times, values, *TOLERANCES[kind])
        for name, values in series.items()
        for kind in TOLERANCES
        if name.endswith(kind)
    }
    grown = {name: series[name][-1] - series[name][0] for name in ("redis_mb", "examples")}
    return {"verdicts": verdicts, "grown": grown, "span_s": times[-1] - times[0], "most_late_s": float(told)}


def _samples(load: subprocess.Popen[str], pipeline: Pipeline, workers: dict[str, ManagedProcess]) -> Iterator[Sample]:
    began = time.monotonic()
    reader = Consumer({**QUIET, "bootstrap.servers": pipeline.bootstrap, "group.id": "soak"})
    reader.assign([TopicPartition(READ, number, 0) for number in range(PARTITIONS)])
    client = redis.Redis.from_url(pipeline.system.stack.redis.url)
    try:
        while load.poll() is None:
            latencies = _read(reader, EVERY_S)
            if len(latencies) < 20:
                continue
            sample: Sample = {"at": time.monotonic() - began}
            for name, worker in workers.items():
                proc = Path(f"/proc/{worker.pid}")
                sample[f"{name} memory_mb"] = _status(proc, "VmRSS") / 1024
                sample[f"{name} open_files"] = len(list((proc / "fd").iterdir()))
                sample[f"{name} threads"] = _status(proc, "Threads")
                sample[f"{name} tasks"] = _tasks(pipeline.system, Role(name))
            sample["p50 latency_ms"] = median(latencies)
            sample["p99 latency_ms"] = quantiles(latencies, n=100)[98]
            sample["redis_mb"] = client.info("memory")["used_memory"] / 2**20
            sample["examples"] = pipeline.count(sa.select(examples.c.example_id))
            yield sample
    finally:
        reader.close()
        client.close()


def _read(reader: Consumer, seconds: float) -> list[float]:
    """Latencies, in milliseconds, of what arrives: from being produced to lying on its topic."""
    found = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for message in reader.consume(1000, timeout=min(left, 0.5)):
            assert message.error() is None, message.error()
            found.append(message.timestamp()[1] - orjson.loads(message.value())[STAMP] / 1e6)
    return found


def _open_connections(system: System) -> None:
    """Have all of a worker's threads open their connection to the store now: of SQLite each is three files."""
    addresses = [f"{system.url(role)}/stats" for role in (Role.ROUTE, Role.CURATE) for _ in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(partial(httpx.get, timeout=60.0, trust_env=False), addresses):
            answer.raise_for_status()


def _tasks(system: System, role: Role) -> float:
    answer = httpx.get(f"{system.url(role)}/metrics", timeout=30.0, trust_env=False).raise_for_status()
    (line,) = (line for line in answer.text.splitlines() if line.startswith("flywheel_event_loop_tasks "))
    return float(line.split()[1])


def _status(proc: Path, name: str) -> float:
    line = next(line for line in (proc / "status").read_text().splitlines() if line.startswith(f"{name}:"))
    return float(line.split()[1])


def table(figures: dict[str, Any], seconds: int, rate: int) -> str:
    """The figures as Markdown."""
    verdicts: dict[str, Verdict] = figures["verdicts"]
    span, grown = figures["span_s"], figures["grown"]
    rows = [
        f"| {name} | {one.mean:.1f} | {one.rise:+.1f} | {one.allowed:.1f} | {'flat' if one.flat else '**rises**'} |"
        for name, one in verdicts.items()
    ]
    an_event, a_second = grown["redis_mb"] * 2**20 / span / rate, grown["examples"] / span
    grew = (
        f"Redis grew by {grown['redis_mb']:.1f} MB in {span:.0f} s, {an_event:.0f} bytes an event sent; "
        f"the example store by {grown['examples']:.0f} rows, {a_second:.0f} a second."
    )
    return "\n".join(
        [
            f"{seconds} s at {rate:,} events/s; the producer was at most {figures['most_late_s']:.2f} s late.",
            "",
            "| series | mean after warm-up | rise of the line through it | allowed | |",
            "|---|---|---|---|---|",
            *rows,
            "",
            grew,
        ]
    )


def main() -> int:
    """Run, print the table, and write it into README.md; 1 where a series rises or the load was not kept up."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=5_000, help="events a second (default 5000)")
    asked = parser.parse_args()
    seconds = round(asked.minutes * 60)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        figures = run(Path(folder), seconds, asked.rate)
    text = table(figures, seconds, asked.rate)
    print(text)
    results.write("soak", text)
    kept_up = figures["most_late_s"] <= MOST_LATE_S
    return 0 if kept_up and all(one.flat for one in figures["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
