"""A stage's heavy work in a process of its own.

The parent keeps its Kafka heartbeats, can cancel, and survives what kills the child. They speak in lines of JSON: the
specification goes in by standard input (secrets stand in no argument list), progress and the result come back on
standard output, logs go to standard error. Standard input stays open while the parent lives; its end is the child's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.training.full_disk import DISK_FULL, REMEDY, is_disk_full

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], Awaitable[None]]
MAX_LINE = 16 * 1024 * 1024
_NO_MEMORY = ("can't allocate memory", "CUDA out of memory")
STOP_GRACE_S = 10.0
PART_WITHIN_S = 60.0
ALLOCATION = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**35),
}
"""How a job's process keeps memory: torch asks for huge pages, and what is freed is not given back to the kernel.

Each tensor of some megabytes is otherwise mapped and cleared anew, page by page: 280,000 faults and a tenth of the time
of a training step of 16 x 128 tokens. Read when a process starts, so its parent sets it; whoever starts the worker may
set these otherwise.
"""


class JobFailed(RuntimeError):
    """A job ended without a result. `kind` is the name of the error that ended it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Machines:
    """Several machines that share a job, and which of them this one is; torchrun's processes meet at the first."""

    count: int
    this: int
    first: str
    port: int


async def run_job(
    module: str,
    specification: dict[str, Any],
    on_progress: Progress,
    timeout_s: float,
    log: Path | None = None,
    processes: int = 1,
    machines: Machines | None = None,
) -> dict[str, Any]:
    """Run `python -m module` and return its result; raises `JobFailed`. Cancelling ends the child.

    What the child logs goes to the file `log`, else to this process's standard error. More than one of `processes` on
    this machine, or more than one of `machines`, are started by torchrun; the first of all speaks with this process,
    so it is the first machine's to call this, and the others' to call `assist`.
    """
    with log.open("ab") if log is not None else contextlib.nullcontext() as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *_arguments(module, processes, machines),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=ALLOCATION | os.environ,
            limit=MAX_LINE,
        )
    try:
        async with asyncio.timeout(timeout_s):
            result = await _converse(process, module, specification, on_progress)
            if machines is not None and machines.count > 1:
                # torchrun's agents part together: one that is ended before keeps the other machines' for minutes.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), PART_WITHIN_S)
            return result
    except TimeoutError:
        raise _too_long(module, timeout_s) from None
    finally:
        await _end(process)


async def assist(module: str, timeout_s: float, processes: int, machines: Machines) -> None:
    """Run this machine's processes of a job that the first machine leads; raises `JobFailed`. Cancelling ends them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *_arguments(module, processes, machines), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(timeout_s):
            code = await process.wait()
    except TimeoutError:
        raise _too_long(module, timeout_s) from None
    finally:
        await _end(process)
    if code:
        raise JobFailed("Died", f"{module} ended with status {code} on machine {machines.this} of {machines.count}")


def _too_long(module: str, timeout_s: float) -> JobFailed:
    return JobFailed("Timeout", f"{module} did not end within {timeout_s:.0f} s: raise training.job_timeout_s")


def _arguments(module: str, processes: int, machines: Machines | None) -> list[str]:
    if machines is not None and machines.count > 1:
        together = [
            f"--nnodes={machines.count}",
            f"--node-rank={machines.this}",
            f"--master-addr={machines.first}",
            f"--master-port={machines.port}",
        ]
    elif processes > 1:
        together = ["--standalone", "--local-addr=127.0.0.1"]
    else:
        return ["-m", module]
    return ["-m", "torch.distributed.run", *together, f"--nproc-per-node={processes}", "-m", module]


async def _converse(
    process: asyncio.subprocess.Process,
    module: str,
    specification: dict[str, Any],
    on_progress: Progress,
) -> dict[str, Any]:
    if process.stdin is None or process.stdout is None:
        raise JobFailed("NoPipes", f"{module} was started without pipes")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(json.dumps(specification).encode() + b"\n")
        await process.stdin.drain()
    async for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            logger.warning("%s wrote a line that is no message", module)
            continue
        if "progress" in message:
            await on_progress(message["progress"])
        elif "result" in message:
            result: dict[str, Any] = message["result"]
            return result
        elif "error" in message:
            raise JobFailed(message["error"]["kind"], message["error"]["message"])
    code = await process.wait()
    raise JobFailed("Died", f"{module} ended with status {code} before it gave a result")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Channel(Protocol):
    """Where a job tells how far it is."""

    def progress(self, **fields: Any) -> None:
        """Tell it; never event text, never a loss or a norm."""


class SilentChannel:
    """Of a process that helps another one, which does the talking."""

    def progress(self, **fields: Any) -> None:
        """Nothing is told."""


class JobChannel:
    """The child's end: reads the specification, writes messages. One a process."""

    def __init__(self) -> None:
        # Libraries print to standard output; the channel keeps the real one and sends theirs to standard error.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._in = os.fdopen(os.dup(0), "r", encoding="utf-8")

    def specification(self) -> dict[str, Any]:
        """The specification; from here on the process ends when its parent does."""
        specification: dict[str, Any] = json.loads(self._in.readline())
        threading.Thread(target=self._watch_parent, name="parent-watch", daemon=True).start()
        return specification

    def progress(self, **fields: Any) -> None:
        """Tell the parent how far it is; never event text, never a loss or a norm."""
        self._write({"progress": fields})

    def run(self, work: Callable[[dict[str, Any], JobChannel], dict[str, Any]]) -> None:
        """Do the work and send its result, or the error that ended it."""
        try:
            result = work(self.specification(), self)
        except Exception as error:
            logging.getLogger(work.__module__).exception("job failed")
            self._write({"error": _described(error)})
            raise SystemExit(1) from None
        self._write({"result": result})

    def _write(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def _watch_parent(self) -> None:
        self._in.read()
        os._exit(70)


def limit_memory(gigabytes: float) -> None:
    """Let this process allocate so much of the machine's memory and no more (0: no limit of ours).

    The limit is the kernel's for private writable memory, on Linux: what is shared or read from files, and a GPU's own
    memory, does not count.
    """
    if gigabytes:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def _described(error: Exception) -> dict[str, str]:
    """An error as its message tells it; memory that ran out is told from other errors of torch by its words."""
    text = str(error)
    if is_disk_full(error):
        return {"kind": DISK_FULL, "message": f"{REMEDY} ({text[:500]})"}
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        remedy = "lower training.micro_batch or generation.batch_size, or raise training.job_memory_gb"
        return {"kind": "MemoryLimit", "message": f"the job ran out of memory: {remedy} ({text[:500]})"}
    return {"kind": type(error).__name__, "message": text[:2000]}
