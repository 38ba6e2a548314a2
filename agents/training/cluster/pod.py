"""What runs in a training Job's pods: starts the same child as a worker would, and tells the worker by the mailbox.

    python -m agents.training.cluster.pod SPECIFICATION SECRETS

The pod of the first machine keeps the domain's lease while the child works, and ends it where the lease is lost, the
cycle was cancelled or all cycles are halted: that holds also while no worker and no API server is there. The other
machines' pods only start their processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from agents.training.child import JobFailed, Machines, assist, run_job
from agents.training.cluster.mailbox import Outbox, mailbox
from agents.training.cluster.manifest import NODE_VARIABLE, SECRET_KEYS
from agents.training.full_disk import LOOK_AGAIN_S, REMEDY, is_disk_full
from app.store import Database, cycles, leases, switches
from app.store.leases import FenceLost, Lease
from app.telemetry.logs import set_up_logging
from models.cycle import CycleState

logger = logging.getLogger(__name__)


class Halted(RuntimeError):
    """The cycle was cancelled, or all cycles are halted."""


def main(arguments: list[str]) -> int:
    """Do this pod's part; the exit status says whether it was done."""
    set_up_logging("training-pod")
    specification, secrets = map(Path, arguments)
    told = json.loads(specification.read_text(encoding="utf-8"))
    machines = Machines(
        told["machines"]["count"],
        int(os.environ.get(NODE_VARIABLE, "0")),
        told["machines"]["first"],
        told["machines"]["port"],
    )
    try:
        if machines.this:
            asyncio.run(_until_told(_assist(told, machines)))
        else:
            asyncio.run(_until_told(_lead(told, machines, secrets, Outbox(mailbox(specification)))))
    except JobFailed as failed:
        logger.error("%s", failed)
        return 1
    return 0


async def _until_told(work: Any) -> None:
    """Do the work until it is done or the pod is asked to end; raises `JobFailed`."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise JobFailed("Died", "the pod was asked to end") from None


async def _assist(told: dict[str, Any], machines: Machines) -> None:
    await _found(machines.first, told["machines"]["within_s"])
    await assist(told["module"], told["timeout_s"], told["processes"], machines)


async def _lead(told: dict[str, Any], machines: Machines, secrets: Path, outbox: Outbox) -> None:
    """Run the job and tell of it. Raises `JobFailed`, of which the worker is told too."""
    try:
        await _tell(outbox, {"result": await _train(told, machines, secrets, outbox)})
    except JobFailed as failed:
        await _tell(outbox, {"error": {"kind": failed.kind, "message": failed.message}})
        raise
    except asyncio.CancelledError:
        # Evicted, or deleted; if a worker still follows, it tries again.
        outbox.write({"error": {"kind": "Died", "message": "the pod was asked to end"}})
        raise
    except Exception as error:
        outbox.write({"error": {"kind": type(error).__name__, "message": str(error)[:2000]}})
        raise


async def _train(told: dict[str, Any], machines: Machines, secrets: Path, outbox: Outbox) -> dict[str, Any]:
    job = told["job"]
    job["config"] |= {key: (secrets / key).read_text(encoding="utf-8").strip() for key in SECRET_KEYS}
    database = Database(job["config"]["database_url"])

    async def tell(fields: dict[str, Any]) -> None:
        # While the volume is full the child waits for room as well, and its next line tells more.
        await asyncio.to_thread(_written, outbox, {"progress": fields})

    work = asyncio.create_task(
        run_job(told["module"], job, tell, told["timeout_s"], processes=told["processes"], machines=machines)
    )
    keeper = asyncio.create_task(_keep(database, Lease(**job["lease"]), job["cycle_id"], told["lease_s"]))
    try:
        await asyncio.wait((work, keeper), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        keeper.result()
        raise RuntimeError("the keeper of the lease ends by an error alone")
    except (FenceLost, Halted) as stopped:
        raise JobFailed(type(stopped).__name__, str(stopped)) from None
    finally:
        for task in (work, keeper):
            task.cancel()
        await asyncio.gather(work, keeper, return_exceptions=True)
        database.close()


async def _tell(outbox: Outbox, message: dict[str, Any]) -> None:
    """Tell the worker how the job ended, once the volume has room for it."""
    while not await asyncio.to_thread(_written, outbox, message):  # noqa: ASYNC110 - a disk calls nobody
        await asyncio.sleep(LOOK_AGAIN_S)


def _written(outbox: Outbox, message: dict[str, Any]) -> bool:
    """Whether there was room for a message."""
    try:
        outbox.write(message)
    except OSError as error:
        if not is_disk_full(error):
            raise
        logger.error("%s; waiting for it", REMEDY)
        return False
    return True


async def _keep(database: Database, lease: Lease, cycle_id: str, lease_s: float) -> None:
    """Renew the lease while the cycle may train; raises `FenceLost` or `Halted` when it may no more."""
    while True:
        try:
            await asyncio.to_thread(_renew, database, lease, cycle_id, lease_s)
        except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
            # If this lasts, the lease runs out, and the next step is not reserved.
            logger.warning("lease not renewed: %s", type(error).__name__, extra={"cycle_id": cycle_id})
        await asyncio.sleep(lease_s / 4)


def _renew(database: Database, lease: Lease, cycle_id: str, lease_s: float) -> None:
    with database.write() as connection:
        leases.renew(connection, lease, lease_s)
        cycle = cycles.get(connection, cycle_id)
        halted = switches.halted(connection)
    if halted is not None:
        raise Halted(f"stopped by {halted.changed_by}; the cycle goes on after `flywheel cycles resume`")
    if cycle is None or cycle.state is not CycleState.TRAINING:
        raise Halted("the cycle is in training no more" if cycle is None else f"the cycle is {cycle.state} now")


async def _found(host: str, within_s: float) -> None:
    """Wait until the first machine has a name; raises `JobFailed`. Its port torchrun waits for itself."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise JobFailed("NotScheduled", f"the first machine {host} was not found: {error}") from None
            await asyncio.sleep(1.0)
        else:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
