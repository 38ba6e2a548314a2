"""One seed: a stream, some faults drawn at random, and every check. The same seed draws the same faults."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from chaos.catalogue import FAULTS, Fault
from chaos.site import Window, opened

TELLINGS_A_FAULT = 5_000


def drawn_faults(seed: int, count: int) -> list[Fault]:
    """The faults of a seed: each kind once before any comes again."""
    drawn = random.Random(seed)
    faults: list[Fault] = []
    while len(faults) < count:
        faults += drawn.sample(FAULTS, len(FAULTS))
    return faults[:count]


def run(folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Run a seed with so many faults; its figures. Raises what failed, and tells what was done before.

    A failure is an `AssertionError` or pytest's `Failed`.
    """
    began = time.monotonic()
    drawn = random.Random(f"{seed} moments")
    told: list[dict[str, Any]] = []
    with opened(folder, seed, TELLINGS_A_FAULT * count, count) as site:
        site.wait_back()
        for fault in drawn_faults(seed, count):
            time.sleep(drawn.uniform(0.5, 2.0))
            site.stream.burst()
            time.sleep(drawn.uniform(0.0, 0.3))
            before, at = site.watch.now().committed, time.monotonic()
            fault.act(site, drawn)
            acted_s, back_s = time.monotonic() - at, site.wait_back()
            now = site.watch.now()
            now.committed = before
            site.windows.append(Window(now, fault.repeats, fault.forgets))
            told.append({"fault": fault.name, "acted_s": round(acted_s, 1), "back_s": round(back_s, 1)})
            print(f"seed {seed}: {fault.name}: {acted_s:.1f} s, back after {back_s:.1f} s", flush=True)
        figures = site.finish()
    return {"seed": seed, "faults": told, **figures, "seconds": round(time.monotonic() - began)}
