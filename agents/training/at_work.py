"""What a training worker's job is at just now, for metrics: read from other threads."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

_TOLD = ("tokens_per_s", "gpu_memory_bytes")


class AtWork:
    """The job at work; a worker runs one at a time. Never a loss, nor anything else that tells of single records."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._job: dict[str, Any] = {}
        self._pii_found = 0

    def progress(self, stage: str, fields: Mapping[str, Any]) -> None:
        """The stage's job has told how far it is."""
        told = {"done": int(fields.get("done", 0)), "total": int(fields.get("total", 0))}
        told |= {name: fields[name] for name in _TOLD if name in fields}
        with self._lock:
            same = self._job.get("stage") == stage
            self._job = {**(self._job if same else {}), "stage": stage, **told}

    def idle(self) -> None:
        """The job has ended."""
        with self._lock:
            self._job = {}

    def found_pii(self, records: int) -> None:
        """The guard has kept so many examples from training."""
        with self._lock:
            self._pii_found += records

    def snapshot(self) -> dict[str, Any]:
        """Return `pii_found`, and of a job at work `stage`, `done`, `total` and what else it told."""
        with self._lock:
            return {**self._job, "pii_found": self._pii_found}
