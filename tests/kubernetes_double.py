"""A double of the Kubernetes API server, as far as Jobs go, and of the machines that run their pods.

It serves the REST paths that the official client asks for, holds Jobs to Kubernetes' own schemas, and asks for a token.
With `runs_pods`, a Job's pods are started as processes of this machine: the same command, arguments and environment;
files of the Secret lie in `secrets`. No test here has spoken with a real API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from aiohttp import web

from agents.training.cluster.manifest import NODE_VARIABLE, SECRETS_AT

TOKEN = "a-service-accounts-token"
SCHEMAS = "1.33"
NAMESPACE = "governance"


@dataclass
class Pod:
    """A Job's pod: a process."""

    index: int
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid


@dataclass
class Cluster:
    """The API server and its Jobs."""

    secrets: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """What pods have besides, on this machine."""
    runs_pods: bool = False
    away: bool = False
    """Answers nothing, as an API server behind a broken balancer."""
    answer: tuple[int, str] | None = None
    """Answers every request with this status and words."""
    refuses: str | None = None
    """What speaks against every Job, as an admission webhook has it."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, list[Pod]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    url: str = ""
    _watching: set[asyncio.Task[None]] = field(default_factory=set)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._gate])
        jobs = "/apis/batch/v1/namespaces/{namespace}/jobs"
        app.add_routes(
            [
                web.post(jobs, self._create),
                web.get(jobs, self._list),
                web.get(jobs + "/{name}", self._get),
                web.delete(jobs + "/{name}", self._delete),
            ]
        )
        return app

    def kubeconfig(self, path: Path, token: str = TOKEN) -> Path:
        """A file that leads here."""
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                    "users": [{"name": "test", "user": {"token": token}}],
                }
            )
        )
        return path

    def ends(self, name: str, kind: str, reason: str = "", message: str = "") -> None:
        """The Job has ended: `Complete`, or `Failed` for a reason."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.jobs[name]["status"] = {"conditions": [condition]}

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        if self.away:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.answer is not None:
            return _status(*self.answer)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if request.match_info.get("namespace") != NAMESPACE:
            return _status(403, "jobs.batch is forbidden")
        found: web.StreamResponse = await handler(request)
        return found

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if request.query.get("fieldValidation") != "Strict":
            return _status(400, "unknown fields would be dropped")
        try:
            kubernetes_validate.validate(body, SCHEMAS, strict=True)
        except kubernetes_validate.ValidationError as error:
            return _status(422, f"Job is invalid: {error.message}")
        if self.refuses is not None:
            return _status(422, self.refuses)
        name = body["metadata"]["name"]
        if name in self.jobs:
            return _status(409, f'jobs.batch "{name}" already exists')
        self.jobs[name] = body | {"status": {"active": 1}}
        self.made.append(name)
        if self.runs_pods:
            await self._run(name, body["spec"])
        return web.json_response(self.jobs[name], status=201)

    async def _list(self, request: web.Request) -> web.Response:
        selector = dict(part.split("=") for part in request.query.get("labelSelector", "").split(",") if part)
        items = [job for job in self.jobs.values() if job["metadata"]["labels"].items() >= selector.items()]
        return web.json_response({"apiVersion": "batch/v1", "kind": "JobList", "metadata": {}, "items": items})

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.jobs:
            return _status(404, f'jobs.batch "{name}" not found')
        return web.json_response(self.jobs[name])

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.jobs:
            return _status(404, f'jobs.batch "{name}" not found')
        body = await request.json() if request.can_read_body else {}
        policy = request.query.get("propagationPolicy") or body.get("propagationPolicy")
        if policy != "Foreground":
            return _status(400, "pods would be left behind")
        self.deleted.append(name)
        for pod in self.pods.get(name, ()):
            _ask_to_end(pod)
        self._soon(self._remove(name))
        return web.json_response(self.jobs[name])

    async def _remove(self, name: str) -> None:
        await asyncio.gather(*(pod.process.wait() for pod in self.pods.get(name, ())))
        self.jobs.pop(name, None)

    async def _run(self, name: str, spec: dict[str, Any]) -> None:
        (container,) = spec["template"]["spec"]["containers"]
        command = [sys.executable if part == "python" else part for part in container["command"]]
        arguments = [str(self.secrets) if part == SECRETS_AT else part for part in container["args"]]
        # What a container has, and nothing of what this process is configured with.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLYWHEEL_")}
        self.pods[name] = []
        for index in range(spec["completions"]):
            own = {NODE_VARIABLE: str(index), **self.environment}
            process = await asyncio.create_subprocess_exec(*command, *arguments, env=inherited | own)
            self.pods[name].append(Pod(index, process))
        self._soon(self._watch(name))

    async def _watch(self, name: str) -> None:
        """As the Job controller: any pod that fails ends the Job and the other pods."""
        waiting = {asyncio.ensure_future(pod.process.wait()) for pod in self.pods[name]}
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(code.result() for code in done):
                for pod in self.pods[name]:
                    _ask_to_end(pod)
                await asyncio.gather(*waiting)
                if name in self.jobs:
                    self.ends(name, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
                return
        if name in self.jobs:
            self.ends(name, "Complete", "CompletionsReached")

    def _soon(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def close(self) -> None:
        for pods in self.pods.values():
            for pod in pods:
                _ask_to_end(pod)
        await asyncio.gather(*(pod.process.wait() for pods in self.pods.values() for pod in pods))
        await asyncio.gather(*self._watching, return_exceptions=True)


def _ask_to_end(pod: Pod) -> None:
    with contextlib.suppress(ProcessLookupError):
        pod.process.send_signal(signal.SIGTERM)


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code)


@asynccontextmanager
async def serving(cluster: Cluster) -> AsyncIterator[Cluster]:
    """Serve the API on loopback; pods that are still there end with the block."""
    runner = web.AppRunner(cluster.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    cluster.url = f"http://{host}:{port}"
    try:
        yield cluster
    finally:
        await cluster.close()
        await runner.cleanup()
