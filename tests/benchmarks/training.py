"""What private training costs: `var/bench/training.json`.

    PYTHONPATH=tests .venv/bin/python -m benchmarks.training

Ratios of a private step to one without privacy, in CPU time and peak memory, and how long a whole small job takes. The
ratios are medians of interleaved steps in one process; the job's seconds want a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from agents.training.child import ALLOCATION
from app.settings import Settings
from benchmarks import training_job, training_steps
from benchmarks.document import read, write
from benchmarks.machine import about_machine, now
from benchmarks.tell import tell

RESULT = Path(__file__).resolve().parents[2] / "var" / "bench" / "training.json"
MOST = {"step_cpu_ratio": 1.06, "step_memory_ratio": 1.10}
MOST_SECONDS = 170.0


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="steps of each kind and shape")
    parser.add_argument("--no-steps", action="store_true", help="leave the steps out")
    parser.add_argument("--no-peaks", action="store_true", help="leave the peaks of memory out")
    parser.add_argument("--shape", action="append", help="16x128: only this shape's peaks, beside those known")
    parser.add_argument("--no-job", action="store_true", help="leave the job out")
    parser.add_argument("--processes", type=int, default=Settings().training.processes, help="that train in the job")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    if arguments is None:
        _as_a_job()
    threads = Settings().training.threads
    figures: dict[str, Any] = read(asked.out)
    figures |= {"model": Settings().training.base_model, "threads": threads}
    if not asked.no_steps:
        # Memory and the job tell their own time: parts of a document may be measured anew.
        figures |= {"machine": about_machine(), "measured_at": now()}
        figures["bf16_gradient_error"] = round(training_steps.bf16_error(), 5)
        figures |= training_steps.measure(asked.repeat, threads)
        write(asked.out, figures)
    if not asked.no_peaks:
        figures |= training_steps.peaks(threads, asked.shape, figures.get("step_peak_mb", {}))
        figures["step_peak_measured_at"] = now()
        write(asked.out, figures)
    if not asked.no_job:
        figures |= training_job.measure(threads, asked.processes)
        figures["job_measured_at"] = now()
        write(asked.out, figures)
    for name, value in figures.items():
        tell(f"{name}: {value}")
    for name, most in MOST.items():
        over = {shape: ratio for shape, ratio in figures.get(name, {}).items() if ratio > most}
        tell(f"{name}: at most {most:g}{f'  MISSED at {over}' if over else ''}")
    if "job_seconds" in figures:
        tell(f"job_seconds: at most {MOST_SECONDS:g}{'  MISSED' if figures['job_seconds'] > MOST_SECONDS else ''}")
    tell(f"written to {asked.out}")
    return 0


def _as_a_job() -> None:
    """Begin again with the environment that a worker gives its jobs: a process reads it once, when it starts."""
    wanted = ALLOCATION | os.environ
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.training", *sys.argv[1:]], wanted)  # noqa: S606  # itself


if __name__ == "__main__":
    sys.exit(main())
