"""The routes, and how errors look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from moe.feedback import Quarantine
from moe.server.admission import check_key
from moe.server.edge import Application, Edge
from moe.server.engine import own_version
from moe.server.errors import Refusal, failed, unhealthy
from moe.server.feedback import take
from moe.server.page import page_response
from moe.server.reload import watch
from moe.server.schema import DESCRIPTION, ERRORS, PREDICT
from moe.server.service import Service

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def build_app(service: Service) -> Application:
    """The ASGI application of a service; its worker runs from startup to shutdown."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        watcher = None
        if service.settings.registry is not None:
            watcher = asyncio.create_task(watch(service.engine, service.settings.registry))
        yield
        if watcher is not None:
            watcher.cancel()
        service.engine.close()

    app = FastAPI(
        title="Mixture of experts",
        description=DESCRIPTION,
        version=own_version(),
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_here)
    app.add_exception_handler(Exception, _broken)
    _add_predict(app, service)
    _add_probes(app, service)
    if service.settings.feedback is not None:
        _add_feedback(app, service, service.settings.feedback)
    return Edge(app, service.http, lambda: service.draining)


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/predict", summary="Answer one request or a list", openapi_extra=PREDICT)
    async def predict(request: Request) -> Response:
        return await service.predict(request)

    @app.get("/info", summary="Model, tasks, labels, limits", responses=ERRORS)
    async def info(request: Request) -> dict[str, Any]:
        check_key(request.headers.get("authorization"), service.settings.api_keys)
        return describe(service)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return page_response()


def _add_feedback(app: FastAPI, service: Service, folder: str) -> None:
    quarantine = Quarantine(folder, service.settings.feedback_per_source)

    @app.post("/feedback", summary="Say what the right answer is", responses=ERRORS)
    async def feedback(request: Request) -> dict[str, Any]:
        return await take(service, quarantine, request)


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/livez", summary="503 if the process should be restarted")
    async def livez() -> dict[str, str]:
        if not service.batcher.alive:
            raise unhealthy("the worker thread has ended")
        return {"status": "ok"}

    @app.get("/readyz", summary="503 while the server shuts down")
    async def readyz() -> dict[str, str]:
        if service.draining:
            raise unhealthy("the server is shutting down")
        return {"status": "ok"}

    @app.get("/metrics", summary="Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.engine.metrics.text(), media_type=_PROMETHEUS)


def describe(service: Service) -> dict[str, Any]:
    """What `/info` answers."""
    tasks = [
        {
            "name": task.name,
            "type": task.type,
            "needs_context": task.needs_context,
            "labels": list(task.labels),
            "out_of_scope": task.out_of_scope is not None,
            "experts": list(task.expert_names),
        }
        for task in service.served.tasks
    ]
    return {
        "model": service.served.name,
        "backend": service.served.backend,
        "hash": service.served.hash,
        "version": own_version(),
        "tasks": tasks,
        "limits": asdict(service.settings.limits),
    }


def _answered(request: Request, refusal: Refusal) -> Response:
    request.state.note.fields["error_type"] = refusal.type
    return JSONResponse(refusal.content(), refusal.status, headers=dict(refusal.headers))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _answered(request, error)


async def _broken(request: Request, error: Exception) -> Response:
    return _answered(request, failed(request.state.note.id))


async def _not_here(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405 in the form of all errors."""
    assert isinstance(error, HTTPException)
    reasons = {
        404: "there is nothing at this path: see /docs",
        405: f"{request.method} is not allowed here: see /docs",
    }
    reason = reasons.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    refusal = Refusal(status=error.status_code, type="Validation", reason=reason, headers=headers)
    return _answered(request, refusal)
