"""How much memory a step takes: each contender in a process of its own, in which each tensor is mapped by itself.

So the peak is what is in use. Where the allocator keeps memory, as it does in a job, its holes take as much again, and
by where they come to lie the same step's peak differs by a third from run to run.

    python -m benchmarks.training_peak private 16 128 2
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WITHIN_S = 900.0
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_MMAP_MAX_": str(2**20), "MALLOC_TRIM_THRESHOLD_": "0"}
"""glibc: from so many bytes on a block is mapped by itself, and unmapped as soon as it is freed."""


def peak_mb(who: str, size: int, width: int, threads: int) -> float:
    """The largest resident set, in MiB, of a process that loads the model and takes two steps.

    Raises `RuntimeError` with the end of what it said where it fails.
    """
    command = [sys.executable, "-m", "benchmarks.training_peak", who, str(size), str(width), str(threads)]
    done = subprocess.run(
        command, env=dict(os.environ) | MAPPED, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{who} at {size}x{width} ended with {done.returncode}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def main(who: str, size: int, width: int, threads: int) -> None:
    """Take the steps and print the peak."""
    from benchmarks.training_steps import STEPS, examples_of, made, model_for_steps

    model, pad_id = model_for_steps(threads)
    contender = made(who, model, examples_of(size, width), pad_id)
    for _ in range(STEPS):
        contender.step()
    print(_highest_mb())


def _highest_mb() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
