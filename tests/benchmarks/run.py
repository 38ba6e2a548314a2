"""One contender over one input: started as a process, waited for, and what it wrote checked."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from app.embedded.process import ManagedProcess, Program
from app.settings.export import to_environment
from benchmarks.contenders.launch import Orders
from benchmarks.expected import Expected, read_outputs
from benchmarks.messages import Form
from benchmarks.meter import Reading
from benchmarks.profiling import ProfileKind
from benchmarks.stage import REPOSITORY, TESTS, Stage, client_settings

OURS = "ours"
PLAIN_FAUST = "plain_faust"
AIOKAFKA_LOOP = "aiokafka_loop"
SPECIFICATION = "specification"
BASELINES = (PLAIN_FAUST, AIOKAFKA_LOOP, SPECIFICATION)

WITHIN_S = 900.0
_STOP_WITHIN_S = 60.0
_TAIL_CHARACTERS = 4_000
_numbers = itertools.count(1)


class ContenderFailed(RuntimeError):
    """A contender ended without a reading, or did not end. The message holds the end of its log."""


class Input(NamedTuple):
    """An input topic, filled."""

    form: Form
    topic: str
    records: int
    expected: Expected


class Outcome(NamedTuple):
    """What came of a run.

    Args:
        reading: the contender's own figures.
        started_s: from the start of its process to its first acknowledged batch.
        redis_us: CPU microseconds that Redis took for an input record.
        differences: between the output topics and what must lie there; empty where all is right.
        profile: the printable profile, where one was asked for.
    """

    reading: Reading
    started_s: float
    redis_us: float
    differences: list[str]
    profile: str = ""


class Started(NamedTuple):
    """A contender at work."""

    process: ManagedProcess
    orders: Orders
    began: float


def start(
    stage: Stage,
    contender: str,
    given: Input,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    profile: ProfileKind | None = None,
) -> Started:
    """Start a contender in a consumer group of its own. Whoever starts it stops its process.

    Args:
        stage: broker and Redis.
        contender: the name of a module in `benchmarks.contenders`.
        given: its input; with `records=0` it runs until it is stopped.
        changes: of settings, section by section, for this run.
        profile: how to look where its time goes.
    """
    name = f"{contender}-{next(_numbers)}"
    settings = stage.settings
    for section, fields in (*(changes or {}).items(), ("kafka", {"group_prefix": f"benchmark-{name}"})):
        settings = settings.model_copy(update={section: getattr(settings, section).model_copy(update=dict(fields))})
    reading = stage.system.run.data / f"{name}.json"
    orders = Orders(given.form, given.topic, given.records, reading, profile.value if profile else "")
    program = Program(
        name,
        (sys.executable, "-m", f"benchmarks.contenders.{contender}", *orders.arguments()),
        env=to_environment(settings) | {"PYTHONPATH": f"{TESTS}:{REPOSITORY}"},
        stop_within=_STOP_WITHIN_S,
    )
    process = ManagedProcess(stage.system.run, program)
    began = time.time()
    process.start()
    return Started(process, orders, began)


def run(
    stage: Stage,
    contender: str,
    given: Input,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    profile: ProfileKind | None = None,
) -> Outcome:
    """Run a contender over its whole input and compare what lies in the output topics then.

    The output topics must be empty, and Redis hold no claim on the input (`Stage.clear`).

    Raises:
        ContenderFailed: it ended early, or was not done within `WITHIN_S`.
    """
    redis_before = _redis_cpu_s(stage)
    started = start(stage, contender, given, changes, profile)
    try:
        _wait(started)
    finally:
        started.process.stop()
    redis_us = (_redis_cpu_s(stage) - redis_before) / given.records * 1e6
    reading = Reading.read(started.orders.reading)
    report = started.orders.reading.with_suffix(".profile")
    return Outcome(
        reading,
        reading.first_at - started.began,
        redis_us,
        given.expected.differences(read_outputs(client_settings(stage.bootstrap))),
        report.read_text() if profile else "",
    )


def _wait(started: Started) -> None:
    """Wait until the process has ended with a reading left behind."""
    process, path = started.process, started.orders.reading
    deadline = time.monotonic() + WITHIN_S
    while process.running:
        if time.monotonic() > deadline:
            raise _failed(process, f"was not done within {WITHIN_S:.0f} s")
        time.sleep(0.05)
    if not path.exists():
        raise _failed(process, "ended before all its input was consumed")


def _failed(process: ManagedProcess, what: str) -> ContenderFailed:
    return ContenderFailed(f"{process.program.name} {what}. Its log ends:\n{process.log()[-_TAIL_CHARACTERS:]}")


def _redis_cpu_s(stage: Stage) -> float:
    used: Any = stage.redis.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])
