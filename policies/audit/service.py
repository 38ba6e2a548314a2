"""The audit engine as a service: what it is made of, how it starts and stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from policies.audit.config import AuditConfig
from policies.audit.door import RETRY_AFTER_S, EntryDoor
from policies.audit.engine import make_engine
from policies.audit.errors import AuditStoreUnavailable
from policies.audit.metrics import AuditMetrics
from policies.audit.migrate import migrate_engine
from policies.audit.routes import LOG_PATH, ServiceParts, log, operating, reading, writing
from policies.audit.seal import KeyRing, SigningKey
from policies.audit.sealer import Sealer, SealLoop
from policies.audit.store import AuditStore
from policies.audit.verify import Witness
from policies.audit.writer import GroupWriter
from policies.wording import faults_in_few_words


def create_audit_app(config: AuditConfig) -> FastAPI:
    """The service. Its database is opened and migrated when it starts, not here. Raises UnusableKey."""
    metrics = AuditMetrics(CollectorRegistry())
    key = None if config.seal is None else SigningKey(config.seal.signing_key)
    lifespan = _lifespan(config, metrics, key)
    app = FastAPI(title="Audit engine", version="1.0", lifespan=lifespan, redirect_slashes=False)
    app.add_middleware(EntryDoor, path=LOG_PATH, write=log, max_bytes=config.max_body_bytes)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(AuditStoreUnavailable, _unavailable)
    for router in (writing, reading, operating):
        app.include_router(router)
    return app


def run(config: AuditConfig, host: str, port: int) -> None:
    """Serve until told to stop."""
    # The process' own logging applies; the access log would repeat model ids and cursors for every poll.
    uvicorn.run(create_audit_app(config), host=host, port=port, log_config=None, access_log=False, proxy_headers=False)


def _lifespan(
    config: AuditConfig, metrics: AuditMetrics, key: SigningKey | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
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
        witness, sealing = _sealing(config, key, engine, store, metrics)
        try:
            await asyncio.to_thread(migrate_engine, engine)
            writer.start()
            if sealing is not None:
                await sealing.start()
            app.state.parts = ServiceParts(config, engine, store, writer, metrics, asyncio.Lock(), sealing, witness)
            yield
        finally:
            await writer.stop()
            if sealing is not None:
                await sealing.stop()
            engine.dispose()

    return lifespan


def _sealing(
    config: AuditConfig, key: SigningKey | None, engine: Engine, store: AuditStore, metrics: AuditMetrics
) -> tuple[Witness | None, SealLoop | None]:
    if config.seal is None or key is None:
        return None, None
    keys = KeyRing([key.public, *config.seal.retired_keys])
    sealer = Sealer(engine, config.seal.checkpoint, key, keys, written=lambda: store.newest)
    return Witness(keys, config.seal.checkpoint), SealLoop(sealer, metrics, config.seal.interval_s)


async def _invalid(_request: Request, error: Exception) -> Response:
    # FastAPI's own answer repeats the input: event text, or NaN, which it then cannot write.
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse({"detail": faults_in_few_words(found)}, status_code=422)


async def _unavailable(_request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})
