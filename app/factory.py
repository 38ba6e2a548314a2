"""`create_app`: a Faust app for one role. Nothing connects at import or here; that happens when the worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faust
from faust import SASLCredentials, SSLCredentials
from faust.contrib.asgi import serve_asgi

from app import heap
from app.connections import AccessRefused, kafka_access, kafka_refusal
from app.kafka import ensure_topics
from app.redis import check_redis
from app.roles import Role, web_port
from app.settings import Settings
from app.transport import ChunkTransport, UncommittedTransport
from app.web.api import create_web
from app.workers import WORKERS, WorkerState

USE_REDIS = (Role.ROUTE, Role.TRAIN, Role.MONITOR)


class FlywheelApp(faust.App):
    """A Faust app that has its topics before it subscribes to them, and reads them by chunks."""

    flywheel_settings: Settings
    flywheel_role: Role
    flywheel_state: WorkerState

    def _new_transport(self) -> ChunkTransport | UncommittedTransport:
        exactly_once = self.flywheel_settings.routing.delivery == "exactly_once"
        if self.flywheel_role is Role.ROUTE and exactly_once:
            return UncommittedTransport(self.conf.broker_consumer, self)
        return ChunkTransport(self.conf.broker_consumer, self)

    async def on_first_start(self) -> None:
        """Create the registry's missing topics; raises `app.kafka.TopicsNotReady`, `app.connections.AccessRefused`."""
        settings = self.flywheel_settings
        if settings.kafka.declare_topics:
            await ensure_topics(settings)
        elif (refusal := await kafka_refusal(settings)) is not None:
            raise AccessRefused(refusal)
        if self.flywheel_role in USE_REDIS:
            await check_redis(settings)
        self.conf.datadir.mkdir(parents=True, exist_ok=True)
        await super().on_first_start()
        heap.settle()


def create_app(settings: Settings, role: Role) -> FlywheelApp:
    """The worker of a role: its agents, its web server, its consumer group."""
    kafka = settings.kafka
    app = FlywheelApp(
        f"{kafka.group_prefix}-{role.value}",
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(settings),
        store="memory://",
        datadir=str(Path(settings.data_dir) / "faust" / role.value),
        autodiscover=False,
        # Topics come from our registry; Faust declares none, and needs no leader election.
        topic_allow_declare=False,
        topic_disable_leader=True,
        # No tables to stand by for, so our own assignor deals the partitions out (`app.transport.sticky`).
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        # Memory: so much a partition waits in the client, and a few chunks of so many records wait in the stream.
        consumer_max_fetch_size=4 * 1024 * 1024,
        broker_max_poll_records=2000,
        stream_buffer_maxsize=4,
        # A killed worker blocks its partitions for this long.
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=kafka.session_timeout_s / 4,
        broker_commit_interval=1.0,
        # Back-pressure stops the polls while Redis or Kafka is away; that must not cost the worker its partitions.
        broker_max_poll_interval=7 * 24 * 3600.0,
        stream_wait_empty=True,
        web_enabled=True,
        worker_redirect_stdouts=False,
    )
    app.flywheel_settings = settings
    app.flywheel_role = role
    state = WorkerState(settings, role)
    app.flywheel_state = state
    WORKERS[role](app, settings, state)
    web: Any = create_web(settings, role, state)
    # Who a proxy speaks for is for `app.web.identity` to believe: uvicorn would rewrite the connection's address by it.
    service = serve_asgi(
        app, web, host=settings.web.host, port=web_port(settings, role), access_log=False, log_config=None,
        proxy_headers=False, server_header=False,
    )  # fmt: skip
    _end_streams_first(service, web)
    return app


def _credentials(settings: Settings) -> SASLCredentials | SSLCredentials | None:
    """How Faust's own consumer gets in; None where nothing is secured. Raises `SettingsError`."""
    access = kafka_access(settings)
    context = access["ssl_context"]
    if "sasl_mechanism" in access:
        return SASLCredentials(
            username=access["sasl_plain_username"],
            password=access["sasl_plain_password"],
            mechanism=access["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)


def _end_streams_first(service: Any, web: Any) -> None:
    """Pages listen for as long as they are open; the server would wait for them to stop, and the worker for it."""
    stop = service.on_stop

    async def on_stop(self: Any) -> None:
        web.state.ticker.close()
        await stop(self)

    service.on_stop = on_stop
