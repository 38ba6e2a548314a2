"""Has a cycle's training done by a Kubernetes Job, and follows it from the worker.

A Job outlives the worker that started it. It is named after its cycle and the fence of its domain's lease, which is
held in the cycle's name, not the worker's: while the Job is at work its pod renews the lease, so whoever takes the
cycle over gets the same fence, finds the Job by its name, and goes on following. A Job under an earlier fence can spend
nothing any more, and is deleted. What a worker does not hear from the API server it reads in the Job's mailbox.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from agents.training.child import JobFailed, Progress
from agents.training.cluster.api import ClusterUnavailable, JobApi, JobState
from agents.training.cluster.config import ClusterConfig, without_secrets
from agents.training.cluster.mailbox import MAILBOX, Inbox, mailbox
from agents.training.cluster.manifest import CYCLE_LABEL, MEETING_PORT, Run, first_host, render
from agents.training.config import CycleConfig
from app.store import Database, cycles, switches
from models.cycle import TERMINAL_STATES, Cycle

logger = logging.getLogger(__name__)

MODULE = "agents.training.jobs.train"
HALTED = "Halted"
"""The kind of a pod's error where it saw by itself that it may train no more."""
SETTLE_S = 20.0
"""A Job's end is seen by the API server; its last words come through the volume, and may take this much longer."""
LATE_S = 300.0
"""How long after the time that Kubernetes gives it a Job that shows no end is followed on."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """That a Job has ended, and how; without a state it is gone."""

    at: float
    state: JobState | None


@dataclass(frozen=True, slots=True)
class _Followed:
    """A Job and where it tells how it goes."""

    name: str
    inbox: Inbox
    deadline: float


class ClusterJobs:
    """Runs the training jobs of cycles in a cluster."""

    def __init__(self, cluster: ClusterConfig, config: CycleConfig, database: Database, api: JobApi) -> None:
        self._cluster = cluster
        self._config = config
        self._database = database
        self._api = api
        self._at_work: set[str] = set()

    def holder(self, cycle_id: str) -> str:
        """In whose name a cycle's domain is held."""
        return f"training-job:{cycle_id}"

    def is_at_work(self, cycle_id: str) -> bool:
        """Whether a Job of the cycle may be at work, as far as this worker has seen."""
        return cycle_id in self._at_work

    async def run(self, cycle: Cycle, specification: dict[str, Any], on_progress: Progress) -> dict[str, Any]:
        """Have the cycle's Job made, or find it, and return its result; raises `JobFailed`.

        Cancelling leaves the Job at work for the next worker, unless the cycle was cancelled or all cycles are halted:
        then it is deleted. Raises `ClusterUnavailable` where no Job could be made, `JobInvalid`.
        """
        run = Run(
            cycle,
            fence=int(specification["lease"]["fence"]),
            specification=self._folder(cycle.cycle_id) / f"{specification['lease']['fence']}.json",
            timeout_s=self._config.job_timeout_s,
        )
        if (result := await asyncio.to_thread(self._result_of_earlier, cycle.cycle_id)) is not None:
            self._at_work.discard(cycle.cycle_id)
            return result
        await asyncio.to_thread(self._write, run, specification)
        try:
            followed = await self._start(run)
            result = await self._follow(followed, on_progress)
        except asyncio.CancelledError:
            if await asyncio.shield(asyncio.to_thread(self._is_unwanted, cycle.cycle_id)):
                await asyncio.shield(self._delete(run.name))
                self._at_work.discard(cycle.cycle_id)
            raise
        except ClusterUnavailable:
            # Nobody says that there is no Job: one of this fence may be at work, and would end with its lease.
            self._at_work.add(cycle.cycle_id)
            raise
        except BaseException as error:
            if isinstance(error, JobFailed) and error.kind == HALTED:
                # The pod saw that it must end before this worker did, and nobody follows this Job any more.
                await asyncio.shield(self._delete(run.name))
            self._at_work.discard(cycle.cycle_id)
            raise
        self._at_work.discard(cycle.cycle_id)
        return result

    async def _start(self, run: Run) -> _Followed:
        for other in await self._api.list(f"{CYCLE_LABEL}={run.cycle.cycle_id}"):
            if other.name != run.name and not other.ended:
                logger.warning("Job %s is of an earlier fence: it is deleted", other.name, extra=_of(run))
                await self._api.delete(other.name)
        self._at_work.add(run.cycle.cycle_id)
        made = await self._api.create(render(run, self._cluster))
        logger.info("Job %s %s", run.name, "is made" if made else "is taken over", extra=_of(run))
        within_s = self._cluster.start_s + run.timeout_s + LATE_S
        return _Followed(run.name, Inbox(mailbox(run.specification)), time.monotonic() + within_s)

    async def _follow(self, job: _Followed, on_progress: Progress) -> dict[str, Any]:
        looked = time.monotonic()
        ended: _Ended | None = None
        while True:
            if (result := await self._heard(job, on_progress)) is not None:
                return result
            now = time.monotonic()
            if ended is not None and now >= ended.at + SETTLE_S:
                raise _without_a_word(job, ended.state)
            if ended is None and now >= looked + self._cluster.poll_s:
                ended = await self._end_of(job)
                looked = time.monotonic()
            if now >= job.deadline:
                raise JobFailed("Died", f"Job {job.name} shows no end long after its time")
            await asyncio.sleep(min(self._config.poll_s, self._cluster.poll_s))

    async def _heard(self, job: _Followed, on_progress: Progress) -> dict[str, Any] | None:
        """Pass on what the Job has told; its result, once it is there. Raises `JobFailed` with its error."""
        for message in await asyncio.to_thread(job.inbox.read):
            if "progress" in message:
                await on_progress(dict(message["progress"]))
            elif "result" in message:
                result: dict[str, Any] = message["result"]
                return result
            elif "error" in message:
                raise JobFailed(message["error"]["kind"], message["error"]["message"])
        return None

    async def _end_of(self, job: _Followed) -> _Ended | None:
        """That the Job has ended, or is gone; None while it is at work, and where nobody says."""
        try:
            state = await self._api.get(job.name)
        except ClusterUnavailable as away:
            # The Job goes on, and its mailbox tells how.
            logger.warning("Job %s is followed by its mailbox alone: %s", job.name, away)
            return None
        if state is not None and not state.ended:
            return None
        return _Ended(time.monotonic(), state)

    async def _delete(self, name: str) -> None:
        try:
            await self._api.delete(name)
        except ClusterUnavailable as away:
            logger.warning("Job %s could not be deleted; its pod sees by itself that it must end: %s", name, away)

    def _is_unwanted(self, cycle_id: str) -> bool:
        """Whether the cycle is to train no more. A store that is away says nothing of the kind: the pod asks it too."""
        try:
            with self._database.read() as connection:
                cycle = cycles.get(connection, cycle_id)
                return cycle is None or cycle.state in TERMINAL_STATES or switches.halted(connection) is not None
        except sa.exc.SQLAlchemyError as error:
            logger.warning("whether the cycle goes on cannot be seen: %s", type(error).__name__)
            return False

    def _folder(self, cycle_id: str) -> Path:
        return self._config.directory(cycle_id) / "jobs"

    def _result_of_earlier(self, cycle_id: str) -> dict[str, Any] | None:
        """The result of a Job that ended while no worker followed it."""
        for path in sorted(self._folder(cycle_id).glob(f"*{MAILBOX}")):
            for message in Inbox(path).read():
                if "result" in message:
                    logger.info("the result is there already: %s", path.name, extra={"cycle_id": cycle_id})
                    found: dict[str, Any] = message["result"]
                    return found
        return None

    def _write(self, run: Run, specification: dict[str, Any]) -> None:
        """Put what the pods need to know, without the secrets, on the volume that they share with this worker."""
        if run.specification.exists():
            return
        run.specification.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "module": MODULE,
            "job": {**specification, "config": without_secrets(self._config)},
            "lease_s": self._config.lease_s,
            "timeout_s": run.timeout_s,
            "processes": self._config.tuning.processes,
            "machines": {
                "count": self._cluster.nodes,
                "first": first_host(run.name, self._cluster),
                "port": MEETING_PORT,
                "within_s": self._cluster.start_s,
            },
        }
        # Also the mailbox: a network file system remembers for a while that a file is not there.
        mailbox(run.specification).touch()
        draft = run.specification.with_suffix(".draft")
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(run.specification)


def _without_a_word(job: _Followed, state: JobState | None) -> JobFailed:
    if state is None:
        return JobFailed("Died", f"Job {job.name} was deleted before it gave a result")
    reason, words = state.failed or ("Complete", "it gave no result")
    if reason == "DeadlineExceeded" and job.inbox.is_empty:
        return JobFailed("NotScheduled", f"Job {job.name} found no machines in time: {words}")
    return JobFailed("Died", f"Job {job.name} ended with {reason}: {words}")


def _of(run: Run) -> dict[str, str]:
    return {"cycle_id": run.cycle.cycle_id}
