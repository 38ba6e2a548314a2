"""A full disk under checkpoints, evaluation and the spool of audit entries: all wait, and no step is paid for twice."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from benches import TINY, Bench, at_work, bench_of, children, need_model, until
from chaos.disk import Disk, small_disk
from services import unavailable
from systems import running

from agents.training.cluster.mailbox import Inbox, Outbox
from agents.training.full_disk import is_disk_full
from app.embedded.system import System
from app.store import progress
from models.audit import AuditEntry
from models.cycle import TERMINAL_STATES, CycleState
from policies.clients.spool import Spool, SpoolUnavailable

STEPS_SEEN = 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of its own, which may be filled."""
    with small_disk(tmp_path / "disk") as made:
        if not made.own:
            unavailable("no right to mount a small disk", "root, or CAP_SYS_ADMIN", may_be_missing=True)
        yield made


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The engines, and a suite of one prompt."""
    need_model()
    folder = tmp_path_factory.mktemp("full")
    suite = folder / "suite.jsonl"
    suite.write_text('{"prompt": "Why is the sky blue?", "expected": "comply"}\n')
    changes = {"suites": (suite,), "max_new_tokens": 8, "public_prompts": 0, "baselines": ()}
    with running(folder, "mock", None, TINY | {"evaluation": changes}) as system:
        system.start_engines()
        yield system


def test_a_spool_without_room_keeps_what_it_has_and_says_so(disk: Disk) -> None:
    spool = Spool(disk.folder / "spool.db")
    spool.put(entry("before"))
    disk.fill()
    with pytest.raises(SpoolUnavailable, match="is its disk full"):
        put(spool, 1_000)
    held = [item.entry.entry_id for item in spool.oldest(2_000)]
    assert held[0] == "before"
    disk.clear()
    spool.put(entry("after"))
    assert [item.entry.entry_id for item in spool.oldest(2_000)] == [*held, "after"]
    spool.close()


def test_a_pod_tells_its_worker_once_there_is_room(disk: Disk) -> None:
    path = disk.folder / "7.jsonl"
    inbox, outbox = Inbox(path), Outbox(path)
    outbox.write({"progress": {"done": 1}})
    disk.fill()
    with pytest.raises(OSError, match="space") as full:
        outbox.write({"progress": {"text": "x" * 100_000}})
    assert is_disk_full(full.value)
    disk.clear()
    outbox.write({"result": {}})
    assert inbox.read() == [{"progress": {"done": 1}}, {"result": {}}], "half a line was left"


@pytest.mark.torch
@pytest.mark.timeout(1200)
async def test_a_cycle_waits_for_room_and_pays_for_no_step_twice(
    system: System, disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with bench_of(system, f"sqlite:///{tmp_path / 'store.db'}", disk.folder) as bench:
        with_epochs(bench, system, 4)
        cycle_id = bench.open(answered=True).cycle_id
        checkpoints = bench.config.directory(cycle_id) / "checkpoints"
        async with at_work(bench.settings, bench.database):
            await until(lambda: len(list(checkpoints.glob("step-*"))) == STEPS_SEEN, "training is under way")
            disk.fill()
            await until(lambda: "waits_for" in detail(bench, cycle_id), "the job waits for room")
            (job,) = children(os.getpid())
            paid, kept = bench.reserved(cycle_id), newest(checkpoints)
            await asyncio.sleep(6.0)
            assert (bench.reserved(cycle_id), newest(checkpoints)) == (paid, kept)
            assert children(os.getpid()) == [job], "it was begun again"
            disk.clear()
            await until(lambda: bench.cycle(cycle_id).state is CycleState.EVALUATING, "it trains to the end")
            # Nothing was computed yet: the evaluation has the model to load first.
            disk.fill()
            await until(lambda: "DiskFull, again in" in caplog.text, "the evaluation finds no room")
            assert bench.cycle(cycle_id).state is CycleState.EVALUATING
            disk.clear()
            await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle ends")
        cycle = bench.cycle(cycle_id)
        assert cycle.plan is not None
        assert "evaluation" in cycle.facts, cycle.reasons
        assert bench.reserved(cycle_id) == cycle.plan.steps


def put(spool: Spool, count: int) -> None:
    for number in range(count):
        spool.put(entry(f"within-{number}"))


def entry(name: str) -> AuditEntry:
    return AuditEntry(
        entry_id=name, event_type="approval", constitutional_hash="cdd01ef066bc6cf2", context={"note": "x" * 500}
    )


def with_epochs(bench: Bench, system: System, epochs: int) -> None:
    tuning = bench.settings.training.model_copy(update={"epochs": epochs})
    bench.settings = system.settings = bench.settings.model_copy(update={"training": tuning})


def detail(bench: Bench, cycle_id: str) -> dict[str, object]:
    with bench.database.read() as connection:
        told = progress.get(connection, cycle_id)
    return {} if told is None else dict(told["detail"])


def newest(checkpoints: Path) -> str:
    return max(path.name for path in checkpoints.glob("step-*"))
