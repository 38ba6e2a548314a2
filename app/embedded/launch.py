"""Become a program that the kernel ends when its parent ends.

Usage: python -I -S launch.py PARENT_PID PROGRAM [ARGUMENT...]

Run as a file by `app.embedded.process`, never imported: a small program of its own, because code between fork and
exec of a process with threads can deadlock, and `-I -S` starts in ~10 ms. The death signal is SIGKILL, and it
survives exec unless the program changes its user id (PostgreSQL under root sets it again through setpriv).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)
PARENT_GONE = 125
NOT_RUNNABLE = 127


def main(argv: list[str]) -> int:
    """Set the death signal, then replace this process; returns only when that fails."""
    parent, program = int(argv[1]), argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.stderr.write(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}\n")
        return PARENT_GONE
    if os.getppid() != parent:  # it ended before the signal was set
        return PARENT_GONE
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
    return NOT_RUNNABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
