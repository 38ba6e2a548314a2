"""Routers side by side share eight partitions evenly, and route each record once, however many they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.scaling import PARTITIONS, Turn, summary, take_turn
from benchmarks.stage import Stage
from systems import running

EVENTS, PER_MESSAGE = 4_000, 50
WARMING = 2 * PARTITIONS


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Kafka and Redis for all numbers of workers."""
    changes = {"pii": {"router": "off"}, "kafka": {"partitions": PARTITIONS}, "log": {"level": "WARNING"}}
    with running(tmp_path_factory.mktemp("scale"), "real", None, changes) as system:
        yield Stage(system)


@pytest.mark.kafka
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_partitions_and_records_evenly(stage: Stage, workers: int) -> None:
    turn = take_turn(stage, workers, EVENTS, PER_MESSAGE, WARMING)

    assert turn.partitions == [PARTITIONS // workers] * workers
    # Messages lie in the partitions in turn, so a share of the partitions is that share of the records.
    assert turn.records == [(EVENTS + WARMING * PER_MESSAGE) // workers] * workers
    assert turn.differences == []
    assert turn.cpu_us > 0


def test_the_summary_tells_flat_from_steep_and_even_from_uneven() -> None:
    def told(*turns: Turn) -> tuple[bool, bool, bool]:
        found = summary({len(turn.partitions): [turn] for turn in turns})
        return found["flat"], found["balanced"], found["counts_exact"]

    one = Turn([8], [80], 20.0, 1.0, [])
    assert told(one, Turn([4, 4], [40, 40], 21.9, 1.0, [])) == (True, True, True)
    assert told(one, Turn([4, 4], [40, 40], 22.1, 1.0, [])) == (False, True, True)
    assert told(one, Turn([3, 5], [30, 50], 20.0, 1.0, [])) == (True, False, True)
    assert told(one, Turn([3, 4], [30, 40], 20.0, 1.0, [])) == (True, False, True)
    assert told(one, Turn([4, 4], [40, 41], 20.0, 1.0, ["one too many"])) == (True, True, False)
