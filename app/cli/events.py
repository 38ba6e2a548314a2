"""`flywheel emit`: send events from a file, by OTLP or straight to Kafka."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from aiokafka.errors import KafkaError

from app.cli.output import AsJson, complain, emit
from app.cli.values import fail
from app.connections import kafka_refusal
from app.emitter import EmitFailed, LogEmitter
from app.kafka import make_producer
from app.settings import Settings, load_settings
from app.topics import AUDIT_EVENTS

BATCH = 200


def add(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("emit")(emit_file)


def emit_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines, one event each.")],
    via: Annotated[str, typer.Option(help="otlp (POST /v1/logs) or kafka.")] = "otlp",
    endpoint: Annotated[str | None, typer.Option(help="OTLP/HTTP endpoint; default: the router's own.")] = None,
    service: Annotated[str, typer.Option(help="service.name of the producer.")] = "flywheel-emit",
    as_json: AsJson = False,
) -> None:
    """Send every event of a file; exit 1 when one was not taken."""
    settings = load_settings()
    events = _read(file)
    if via == "otlp":
        url = endpoint or f"http://{settings.web.host}:{settings.web.route_port}/v1/logs"
        token = settings.web.token.get_secret_value() if settings.web.token else None
        try:
            with LogEmitter(url, service, token) as emitter:
                for start in range(0, len(events), BATCH):
                    emitter.emit(events[start : start + BATCH])
        except EmitFailed as error:
            complain(str(error))
            raise typer.Exit(1) from None
    elif via == "kafka":
        try:
            asyncio.run(_to_kafka(settings, events))
        except KafkaError as error:
            if (refusal := asyncio.run(kafka_refusal(settings))) is not None:
                fail(refusal)
            servers = settings.kafka.bootstrap_servers
            typer.echo(f"flywheel: Kafka at {servers} did not take the events: {type(error).__name__}", err=True)
            raise typer.Exit(1) from None
    else:
        raise typer.BadParameter(f"--via {via!r}: use otlp or kafka")
    emit({"file": str(file), "via": via, "events": len(events)}, as_json)


async def _to_kafka(settings: Settings, events: list[dict[str, Any]]) -> None:
    producer = make_producer(settings)
    await producer.start()
    try:
        sent = [await producer.send(AUDIT_EVENTS.name, orjson.dumps(event)) for event in events]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def _read(file: Path) -> list[dict[str, Any]]:
    events = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise typer.BadParameter(f"{file}, line {number} is not JSON: {error}") from None
        if not isinstance(event, dict):
            raise typer.BadParameter(f"{file}, line {number} is not an event: write one JSON object a line")
        events.append(event)
    return events
