"""Counts the GPU hours that a job really used, for the quotas of the gate."""

from __future__ import annotations

import logging
import uuid

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import Database, usage
from models.cycle import Cycle

logger = logging.getLogger(__name__)


class GpuMeter:
    """One job's meter: begun when the job says how many GPUs it holds, ticked with its progress, ended with it.

    Used on the account of whoever requested the cycle. A worker that dies leaves what was counted up to its last tick.
    """

    def __init__(self, database: Database, cycle: Cycle, machine: str) -> None:
        self._database = database
        self._cycle = cycle
        self._machine = machine
        self._job_id: str | None = None

    def begin(self, gpus: int) -> None:
        """The job holds so many GPUs from now on; none, on a machine without."""
        job_id = uuid.uuid4().hex
        cycle = self._cycle
        with self._database.write() as connection:
            usage.begin(
                connection,
                job_id,
                cycle_id=cycle.cycle_id,
                user_id=cycle.requested_by,
                reporter=self._machine,
                gpus=gpus,
            )
        self._job_id = job_id

    def tick(self, connection: Connection) -> None:
        """The job is at work, as of this transaction."""
        if self._job_id is not None:
            usage.seen(connection, self._job_id)

    def end(self) -> None:
        """The job has ended. A store that is away now knows it up to the last tick."""
        if self._job_id is None:
            return
        try:
            with self._database.write() as connection:
                usage.seen(connection, self._job_id, ended=True)
        except sa.exc.SQLAlchemyError as error:
            logger.warning(
                "the end of a job's GPU use was not written: %s",
                type(error).__name__,
                extra={"cycle_id": self._cycle.cycle_id},
            )
