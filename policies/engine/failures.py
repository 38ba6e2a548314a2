"""Every failure as the contract's ErrorResponse. None repeats what was sent: it is somebody's text."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from policies.engine.errors import EngineBusyError, EngineError, LimitError
from policies.engine.limits import error_response
from policies.wording import faults_in_few_words


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of the application in the engine's form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, "invalid_request", faults_in_few_words(error.errors()))

    @app.exception_handler(LimitError)
    async def over_limit(_: Request, error: LimitError) -> JSONResponse:
        return error_response(422, "over_limit", str(error))

    @app.exception_handler(EngineBusyError)
    async def busy(_: Request, error: EngineBusyError) -> JSONResponse:
        return error_response(503, "busy", str(error), {"retry-after": "1"})

    @app.exception_handler(EngineError)
    async def not_ready(_: Request, error: EngineError) -> JSONResponse:
        return error_response(503, "not_ready", str(error), {"retry-after": "5"})

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
        return error_response(error.status_code, name, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        # Starlette logs the traceback. Its message may hold the text, so only its kind is told.
        return error_response(500, "internal_error", f"{type(error).__name__}; see the engine's log")
