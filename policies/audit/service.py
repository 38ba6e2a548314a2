"""The audit engine as a service: what it is made of, how it starts and stops."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from policies.audit.config import AuditConfig, AuditConfigError
from policies.audit.engine import make_engine
from policies.audit.errors import AuditStoreUnavailable
from policies.audit.limits import BodyLimit
from policies.audit.metrics import AuditMetrics
from policies.audit.migrate import migrate_engine
from policies.audit.routes import ServiceParts, operating, reading, writing
from policies.audit.store import AuditStore
from policies.audit.writer import GroupWriter


def create_audit_app(config: AuditConfig) -> FastAPI:
    """The service. Its database is opened and migrated when it starts, not here."""
    metrics = AuditMetrics(CollectorRegistry())
    app = FastAPI(title="Audit engine", version="1.0", lifespan=_lifespan(config, metrics))
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(AuditStoreUnavailable, _unavailable)
    for router in (writing, reading, operating):
        app.include_router(router)
    return app


def run(config: AuditConfig, host: str, port: int) -> None:
    """Serve until told to stop. Raises AuditConfigError where writing would be open to the network without a token."""
    if config.token is None and not _is_loopback(host):
        msg = f"the audit engine would take entries from whoever reaches {host}:{port}; set a token or bind 127.0.0.1"
        raise AuditConfigError(msg)
    # The process' own logging applies; the access log would repeat model ids and cursors for every poll.
    uvicorn.run(create_audit_app(config), host=host, port=port, log_config=None, access_log=False)


def _lifespan(config: AuditConfig, metrics: AuditMetrics) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = make_engine(config.database_url)
        store = AuditStore(engine, config.digest_key)
        writer = GroupWriter(
            store,
            metrics,
            queue_entries=config.queue_entries,
            batch_entries=config.batch_entries,
            write_timeout_s=config.write_timeout_s,
        )
        try:
            await asyncio.to_thread(migrate_engine, engine)
            writer.start()
            app.state.parts = ServiceParts(config, engine, store, writer, metrics, asyncio.Lock())
            yield
        finally:
            await writer.stop()
            engine.dispose()

    return lifespan


async def _invalid(_request: Request, error: Exception) -> Response:
    # FastAPI's own answer repeats the input: event text, or NaN, which it then cannot write.
    found = error.errors() if isinstance(error, RequestValidationError) else []
    problems = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in found[:10])
    return JSONResponse({"detail": problems}, status_code=422)


async def _unavailable(_request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
