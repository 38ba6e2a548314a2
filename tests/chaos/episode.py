"""One seed: a stream, some faults drawn at random, and every check. The same seed draws the same faults."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chaos import checks
from chaos.at_start import Change, changed
from chaos.catalogue import drawn_faults, drawn_topology
from chaos.fault import Fault
from chaos.site import NO_MODEL, Reviewed, Site, Topology, Window, opened

TELLINGS_A_FAULT = 5_000
PATIENCE = 2
"""How much longer than planned for its faults the stream lasts before it is a trickle, which shows nobody at work."""


class NotStarted(RuntimeError):
    """Nothing was tested."""


def run(
    folder: Path,
    seed: int,
    count: int,
    faults: Sequence[Fault] | None = None,
    topology: Topology | None = None,
    environment: Mapping[str, str] | None = None,
    changes: Sequence[Change] = (),
    back_within_s: float = checks.BACK_WITHIN_S,
) -> dict[str, Any]:
    """Run a seed with so many faults; its figures. Raises what failed, and tells what was done before.

    `faults` and `topology` stand in for what the seed would draw; `environment` and `changes` are those of workers and
    engines.
    A failure is an `AssertionError`, pytest's `Failed`, or `ProcessExited` of what ended by itself; `NotStarted` says
    that no fault fell, for what was to be tested did not come to work.
    """
    began = time.monotonic()
    drawn = random.Random(f"{seed} moments")
    chosen = drawn_faults(seed, count) if faults is None else list(faults)
    stands_on = topology or drawn_topology(seed, chosen)
    told: list[dict[str, Any]] = []
    traffic = Reviewed(TELLINGS_A_FAULT * len(chosen), seed)
    clocks = any(fault.needs == "libfaketime" for fault in chosen)
    with ExitStack() as stack:
        try:
            variables = {**(environment or {}), **changed([NO_MODEL, *changes])}
            rounds = PATIENCE * len(chosen)
            site = stack.enter_context(opened(folder, traffic, rounds, stands_on, variables, clocks=clocks))
            site.wait_back()
        except (Exception, pytest.fail.Exception) as error:
            raise NotStarted(f"what was to be tested did not come to work: {error}") from error
        print(f"seed {seed}: on {stands_on}, at work after {time.monotonic() - began:.0f} s", flush=True)
        for fault in chosen:
            try:
                told.append({"fault": fault.name} | _strike(site, fault, drawn, back_within_s))
            except (AssertionError, pytest.fail.Exception) as error:
                raise AssertionError(f"{fault.name}: {error}") from error
            print(f"seed {seed}: {told[-1]}", flush=True)
        figures = checks.finish(site)
    where = {"brokers": stands_on.brokers, "database": stands_on.database, "back_within_s": back_within_s}
    return {"seed": seed, **where, "faults": told, **figures, "seconds": round(time.monotonic() - began)}


def _strike(site: Site, fault: Fault, drawn: random.Random, back_within_s: float) -> dict[str, Any]:
    """Do a fault while all have their hands full, and wait until they have again."""
    missing = _missing(site, fault)
    if missing:
        return {"skipped": missing}
    time.sleep(drawn.uniform(0.5, 2.0))
    site.stream.burst()
    site.reviewer.give_work()
    time.sleep(drawn.uniform(0.0, 0.5))
    before, at = site.watch.now().committed, time.monotonic()
    fault.act(site, drawn)
    acted_s = time.monotonic() - at
    back_s, last = site.wait_back(back_within_s)
    now = site.watch.now()
    now.committed = before
    site.windows.append(Window(now, fault.repeats, fault.forgets))
    return {"acted_s": round(acted_s, 1), "back_s": back_s, "last": last}


def _missing(site: Site, fault: Fault) -> str:
    """What the machine lacks for a fault; empty where it lacks nothing."""
    lacks = {
        "collector": site.collector is None,
        "own disk": not site.disk.own,
        "libfaketime": site.clock is None or not site.clock.own,
    }
    return f"this machine has no {fault.needs}" if lacks.get(str(fault.needs), False) else ""
