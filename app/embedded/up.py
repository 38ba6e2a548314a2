"""`flywheel up` and `flywheel worker all`: everything on one machine until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import typer

from app.embedded.errors import EmbeddedError
from app.embedded.kafka.jars import default_cache
from app.embedded.process import ManagedProcess, ProcessGroup, Program
from app.embedded.run_directory import RunDirectory
from app.embedded.stack import BrokerKind
from app.embedded.system import System
from app.roles import Role
from app.settings import Settings
from app.settings.export import to_environment

CHECK_S = 1.0


def run_up(settings: Settings, broker: BrokerKind) -> None:
    """Run the embedded stack, both engines and all workers."""
    with RunDirectory.create(Path(settings.data_dir) / "run", "up") as run:
        system = System(run, settings, broker, default_cache(os.environ), private=False)
        try:
            system.start_stores()
            typer.echo(f"broker {system.settings.kafka.bootstrap_servers}; starting the engines")
            system.start_engines()
            system.start_workers()
            for role in Role:
                typer.echo(f"{role.value:8} {system.url(role)}/")
            typer.echo("Ctrl-C stops everything")
            _until_interrupted(system.check)
        except EmbeddedError as error:
            typer.echo(f"flywheel: {error}", err=True)
            raise typer.Exit(1) from None
        finally:
            system.stop()


def run_workers(settings: Settings) -> None:
    """Run one worker of every role, against the services of the settings."""
    with RunDirectory.create(Path(settings.data_dir) / "run") as run, ProcessGroup() as group:
        environment = to_environment(settings)
        for role in Role:
            argv = (sys.executable, "-m", "app", "worker", role.value)
            group.start(ManagedProcess(run, Program(f"worker-{role.value}", argv, env=environment)))
        typer.echo(f"workers {', '.join(Role)} are running; logs in {run.logs}; Ctrl-C stops them")
        _until_interrupted(group.check)


def _until_interrupted(check: Callable[[], None]) -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(CHECK_S):
        check()
