"""A job in a process of its own: results, errors, and an end with whoever started it. Real processes throughout."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agents.training import child
from agents.training.child import ALLOCATION, JobFailed, run_job

REPOSITORY = Path(__file__).resolve().parents[3]
WITHIN_S = 60.0

# One job that does what its specification says. What stands above the import runs before the channel is made.
JOB = """
import ctypes, os, signal, sys, time
print("a library greets, at import")
print(12345)
from agents.training.child import JobChannel, limit_memory

class OwnError(RuntimeError):
    pass

def main(specification, channel):
    what = specification["do"]
    if what == "answer":
        for step in range(3):
            channel.progress(done=step, total=3)
        return {"got": specification["value"], "pid": os.getpid()}
    if what == "print":
        print('{"result": {"forged": true}}', flush=True)
        os.write(1, b'{"error": {"kind": "Forged", "message": ""}}\\n')
        os.system("echo '{\\"result\\": {\\"forged\\": true}}'")
        ctypes.CDLL(None).puts(b"from C, without an end")
        return {"forged": False}
    if what == "tell environment":
        return {name: os.environ.get(name) for name in specification["names"]}
    if what == "raise":
        raise OwnError("x" * 5000)
    if what == "exit":
        os._exit(3)
    if what == "hoard":
        if specification["in"] == "torch":
            import torch
        limit_memory(specification["gigabytes"])
        if specification["in"] == "torch":
            return {"held": torch.zeros(2**31, dtype=torch.uint8).numel()}
        return {"held": len(bytearray(2**31))}
    if what == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.progress(pid=os.getpid(), total=1)
    # A wait in C that holds the interpreter lock would be no other: the watch on the parent is a thread.
    while True:
        time.sleep(0.05)

if __name__ == "__main__":
    JobChannel().run(main)
"""

# Starts the job as a worker would, says who the child is, and waits to be killed.
PARENT = """
import asyncio
from agents.training.child import run_job
async def told(fields):
    print(fields["pid"], flush=True)
asyncio.run(run_job("job_under_test", {"do": "wait"}, told, 600))
"""


@pytest.fixture(autouse=True)
def _job_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job_under_test.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")


class Told:
    """Takes the progress of a job."""

    def __init__(self) -> None:
        self.fields: list[dict[str, Any]] = []
        self.some = asyncio.Event()

    async def __call__(self, fields: dict[str, Any]) -> None:
        self.fields.append(fields)
        self.some.set()

    async def pid(self) -> int:
        """The child's process id, once it has told it."""
        async with asyncio.timeout(WITHIN_S):
            await self.some.wait()
        return int(self.fields[0]["pid"])


async def run(
    specification: dict[str, Any], told: Callable[[dict[str, Any]], Awaitable[None]], timeout_s: float
) -> Any:
    return await run_job("job_under_test", specification, told, timeout_s)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie has ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + WITHIN_S
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


async def test_the_result_and_the_progress_come_back() -> None:
    told = Told()
    value = {"text": "änderung\n\u2028", "numbers": [1, 2.5, None], "long": "x" * 3_000_000}
    result = await run({"do": "answer", "value": value}, told, WITHIN_S)
    assert result["got"] == value
    assert result["pid"] != os.getpid()
    assert told.fields == [{"done": step, "total": 3} for step in range(3)]
    assert not is_alive(result["pid"])


async def test_what_libraries_print_is_no_message(capfd: pytest.CaptureFixture[str]) -> None:
    assert await run({"do": "print"}, Told(), WITHIN_S) == {"forged": False}
    err = capfd.readouterr().err
    assert "from C, without an end" in err
    assert err.count("forged") == 2
    assert "Forged" in err


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers all private memory on Linux only")
@pytest.mark.parametrize("held_in", ["python", pytest.param("torch", marks=pytest.mark.torch)])
async def test_a_job_that_takes_more_memory_than_it_may_ends_with_the_remedy(held_in: str) -> None:
    hoard = {"do": "hoard", "in": held_in}
    assert await run({**hoard, "gigabytes": 0}, Told(), WITHIN_S) == {"held": 2**31}
    with pytest.raises(JobFailed, match=r"raise training\.job_memory_gb") as raised:
        await run({**hoard, "gigabytes": 1.0}, Told(), WITHIN_S)
    assert raised.value.kind == "MemoryLimit"


async def test_an_error_comes_with_its_kind_and_a_bounded_message() -> None:
    with pytest.raises(JobFailed, match=r"^OwnError: xxx") as raised:
        await run({"do": "raise"}, Told(), WITHIN_S)
    assert raised.value.kind == "OwnError"
    assert len(str(raised.value)) < 2100


async def test_a_child_keeps_its_memory_unless_its_worker_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    told = await run({"do": "tell environment", "names": list(ALLOCATION)}, Told(), WITHIN_S)
    assert told == ALLOCATION | {"MALLOC_MMAP_MAX_": "7"}


async def test_a_child_that_dies_without_a_word_is_told_apart() -> None:
    with pytest.raises(JobFailed, match="status 3") as raised:
        await run({"do": "exit"}, Told(), WITHIN_S)
    assert raised.value.kind == "Died"


async def test_a_child_killed_from_outside_is_told_apart() -> None:
    told = Told()
    job = asyncio.create_task(run({"do": "wait"}, told, WITHIN_S))
    os.kill(await told.pid(), signal.SIGKILL)
    with pytest.raises(JobFailed, match="status -9") as raised:
        await job
    assert raised.value.kind == "Died"


async def test_a_module_that_is_not_there_is_a_death() -> None:
    with pytest.raises(JobFailed) as raised:
        await run_job("no_such_job_module", {}, Told(), WITHIN_S)
    assert raised.value.kind == "Died"


async def test_a_job_that_takes_too_long_is_ended() -> None:
    told = Told()
    with pytest.raises(JobFailed, match=r"training\.job_timeout_s") as raised:
        # Long enough for the child to start, short against the wait within it.
        await run({"do": "wait"}, told, 8.0)
    assert raised.value.kind == "Timeout"
    assert told.fields, "the child had not even started"
    assert not is_alive(int(told.fields[0]["pid"]))


async def test_cancelling_ends_the_child() -> None:
    told = Told()
    job = asyncio.create_task(run({"do": "wait"}, told, WITHIN_S))
    pid = await told.pid()
    assert is_alive(pid)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not is_alive(pid)


async def test_a_child_that_ignores_the_signal_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STOP_GRACE_S", 0.5)
    told = Told()
    job = asyncio.create_task(run({"do": "stubborn"}, told, WITHIN_S))
    pid = await told.pid()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not is_alive(pid)


async def test_an_error_while_progress_is_told_ends_the_child() -> None:
    pids = []

    async def failing(fields: dict[str, Any]) -> None:
        pids.append(fields["pid"])
        raise ConnectionError("the store is away")

    with pytest.raises(ConnectionError):
        await run({"do": "wait"}, failing, WITHIN_S)
    assert not is_alive(pids[0])


def test_the_child_ends_with_a_parent_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
        finally:
            parent.kill()
        parent.wait()
    wait_until_gone(pid)


def test_the_specification_stands_in_no_argument_list() -> None:
    """It holds tokens and keys, and arguments are seen by every user of a machine."""
    with subprocess.Popen(
        [sys.executable, "-m", "job_under_test"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        job.stdin.write(json.dumps({"do": "wait", "key": "a-secret"}) + "\n")
        job.stdin.flush()
        while "progress" not in (line := job.stdout.readline()):
            assert line, "the job ended early"
        assert "a-secret" not in Path(f"/proc/{job.pid}/cmdline").read_text()
        assert "a-secret" not in Path(f"/proc/{job.pid}/environ").read_text()
        job.stdin.close()
        assert job.wait(WITHIN_S) == 70, "a job whose parent has gone ends by itself"
