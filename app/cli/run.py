"""Commands that run something until it is stopped: workers, engines, the embedded stack, the demo."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.embedded.stack import BrokerKind
from app.roles import Role
from app.settings import SettingsError, load_settings
from app.telemetry.logs import set_up_logging

ALL = "all"


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command()(worker)
    cli.command("policy-engine")(policy_engine)
    cli.command("audit-engine")(audit_engine)
    cli.command()(up)
    cli.command()(demo)


def worker(role: Annotated[str, typer.Argument(help="route, curate, train, monitor or all")]) -> None:
    """Run the worker of a role (`all`: one process for each role)."""
    roles = [known.value for known in Role]
    if role == ALL:
        from app.embedded.up import run_workers

        run_workers(load_settings())
        return
    if role not in roles:
        raise typer.BadParameter(f"{role!r} is no role: use {', '.join(roles)} or {ALL}")
    settings = load_settings()
    set_up_logging(f"worker-{role}", settings.log.level, settings.log.format)
    from faust.worker import Worker

    from app.factory import create_app

    app = create_app(settings, Role(role))
    Worker(app, loglevel=None, override_logging=False, redirect_stdouts=False, quiet=True).execute_from_commandline()


def policy_engine() -> None:
    """Serve the policy engine (ACGS-compatible HTTP)."""
    settings = load_settings()
    set_up_logging("policy-engine", settings.log.level, settings.log.format)
    from app.wiring import engine_config
    from policies.constitution import load_constitution
    from policies.engine.errors import UnfitSettings
    from policies.engine.service import run

    engine = settings.policy_engine
    try:
        run(engine_config(settings), load_constitution(settings.constitution.path), engine.host, engine.port)
    except UnfitSettings as error:
        raise SettingsError(f"policy_engine: {error}") from None


def audit_engine() -> None:
    """Serve the audit engine."""
    settings = load_settings()
    set_up_logging("audit-engine", settings.log.level, settings.log.format)
    from app import heap
    from app.wiring import audit_config
    from policies.audit.service import run

    heap.settle()
    run(audit_config(settings), settings.audit_engine.host, settings.audit_engine.port)


Kafka = Annotated[
    str, typer.Option("--kafka", help="mock (librdkafka's, in memory) or real (Apache Kafka; needs Java)")
]


def up(kafka: Kafka = "mock") -> None:
    """Run the embedded stack and all workers, for development, until Ctrl-C."""
    from app.embedded.up import run_up

    run_up(load_settings(), _broker(kafka))


def demo(
    kafka: Kafka = "mock",
    full: Annotated[
        bool, typer.Option("--full", help="All authored prompts; this is where quality is judged.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the pages up until Ctrl-C.")] = False,
    seed: Annotated[int, typer.Option(help="Chooses prompts and every random stream but the privacy noise.")] = 0,
    prompts: Annotated[Path | None, typer.Option(help="Another prompt file, in the form of the authored one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run the whole loop once on real input, and report."""
    from app.embedded.system import THREAD_WAIT

    # OpenMP reads them when torch is first loaded, in the children.
    for name, value in THREAD_WAIT.items():
        os.environ.setdefault(name, value)
    from app.demo.plan import DemoOptions
    from app.demo.run import run_demo

    options = DemoOptions(broker=_broker(kafka), full=full, keep=keep, seed=seed, prompts=prompts, as_json=as_json)
    sys.exit(run_demo(load_settings(), options))


def _broker(kafka: str) -> BrokerKind:
    if kafka == "mock":
        return "mock"
    if kafka == "real":
        return "real"
    raise typer.BadParameter(f"--kafka {kafka!r}: use mock or real")
