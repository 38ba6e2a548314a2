"""The short form of the soak, and what it takes for flat."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.flatness import judge
from chaos.soak import run, table


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_a_steady_load_leaves_files_and_threads_flat(tmp_path: Path) -> None:
    figures = run(tmp_path, seconds=40, rate=1_000)
    print(table(figures, 40, 1_000))
    # Heaps still fill in so short a time, and latency is the machine's: both are judged by the long form alone.
    judged = {name: one for name, one in figures["verdicts"].items() if name.endswith(("open_files", "threads"))}
    rising = {name for name, one in judged.items() if not one.flat}
    assert len(judged) == 4
    assert not rising
    assert figures["grown"]["examples"] > 0


def test_a_leak_is_told_from_noise_and_from_a_warm_up() -> None:
    times = [float(number) for number in range(30)]
    noise = [100.0 + number % 3 for number in range(30)]
    warming = [min(100.0, 50.0 + 10 * number) for number in range(30)]
    leaking = [100.0 + number for number in range(30)]
    assert judge(times, noise, 0.1, 0.0).flat
    assert judge(times, warming, 0.1, 0.0).flat
    assert not judge(times, leaking, 0.1, 0.0).flat
