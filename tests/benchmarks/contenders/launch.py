"""How a contender's process is told what to do, and how a Faust app is run in it.

The settings (addresses, linger, compression) come by environment, as a worker's do; what only the benchmark knows
comes by arguments.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.messages import Form


@dataclass(frozen=True, slots=True)
class Orders:
    """What one run is to do.

    Args:
        form: how events lie in messages.
        topic: the input topic.
        records: how many records lie there; the process ends once all are consumed. 0 runs until it is stopped.
        reading: where the meter's reading goes.
        profile: a kind of profile to print, or empty.
    """

    form: Form
    topic: str
    records: int
    reading: Path
    profile: str = ""

    def arguments(self) -> list[str]:
        """Return the orders as command line arguments."""
        named = {name: str(getattr(self, name)) for name in self.__slots__}
        return [text for name, value in named.items() if value for text in (f"--{name}", value)]

    @classmethod
    def parse(cls) -> Orders:
        """Read the orders from this process's command line."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--form", type=Form, required=True)
        parser.add_argument("--topic", required=True)
        parser.add_argument("--records", type=int, required=True)
        parser.add_argument("--reading", type=Path, required=True)
        parser.add_argument("--profile", default="")
        return cls(**vars(parser.parse_args()))


def end_process() -> None:
    """Ask this process to end as an operator would, so that it commits and closes what is open."""
    os.kill(os.getpid(), signal.SIGTERM)


def run_faust(app: Any) -> None:
    """Run a Faust app as `flywheel worker` does, until the process is asked to end."""
    from faust.worker import Worker

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a Faust worker handles signals, so it must run in the main thread")
    Worker(app, loglevel=None, override_logging=False, redirect_stdouts=False, quiet=True).execute_from_commandline()
