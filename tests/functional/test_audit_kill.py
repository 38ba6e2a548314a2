"""The audit engine killed under load: nothing that was acknowledged is lost, and the chain goes on as one."""

from __future__ import annotations

import time
from pathlib import Path

from audit_logs import read_rows
from audit_rig import audit_engine, writing
from sqlalchemy import Engine
from systems import wait_until

from app.embedded.run_directory import RunDirectory
from app.wiring import audit_checkpoint
from policies.audit.engine import make_engine

WRITERS = 8
KILLS = 2
MORE = 300  # entries between two kills


def test_every_acknowledged_entry_is_there_after_kill_9(
    run_directory: RunDirectory, tmp_path: Path, database_url: str
) -> None:
    with audit_engine(run_directory, tmp_path, database_url, seal_interval_s=0.2) as engine:
        heads = audit_checkpoint(engine.settings)
        log = make_engine(database_url)
        with writing(engine, "w", WRITERS) as loads:
            for _ in range(KILLS):
                wait_for_more(log, heads)
                engine.process.kill()
                time.sleep(0.3)
                engine.process.start()
            wait_for_more(log, heads)
        (load,) = loads
        rows = read_rows(log)
        log.dispose()
        kept = {row["entry_id"]: row["digest"] for row in rows}
        assert len(kept) == len(rows)
        assert load.receipts.items() <= kept.items()
        # An entry may be there whose receipt was lost with the engine: one a writer at a time.
        assert len(rows) - len(load.receipts) <= WRITERS
        check_order(load.receipts, [row["entry_id"] for row in rows])
        engine.process.stop()
        report = engine.verify()
    assert report.fault is None
    assert report.checkpoint_fault is None
    assert (report.entries, report.unsealed) == (len(rows), 0), "a clean stop seals what came last"


def wait_for_more(log: Engine, heads: Path) -> None:
    """Entries, so that every writer is at work, and signed heads."""
    there, sealed = len(read_rows(log)), heads.stat().st_size
    wait_until(lambda: len(read_rows(log)) > there + MORE, "the writers are at work")
    wait_until(lambda: heads.stat().st_size > sealed, "heads are sealed")


def check_order(receipts: dict[str, str], stored: list[str]) -> None:
    """Each writer waits for its receipt, so its entries lie in its own order."""
    for writer in {name.partition("-")[0] for name in receipts}:
        numbers = [int(name.partition("-")[2]) for name in stored if name.startswith(f"{writer}-")]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > MORE / WRITERS, f"writer {writer} did not go on after a kill"
