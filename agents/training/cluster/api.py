"""What of the Kubernetes API a worker needs, through the official client; its blocking calls run in threads.

The package `kubernetes` is an extra, imported by whoever makes a `JobApi`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

GONE = 404
CONFLICT = 409
INVALID = frozenset({400, 422})


class ClusterUnavailable(RuntimeError):
    """The API server does not answer, or does not let us in. The cycle waits and asks again."""


class JobInvalid(RuntimeError):
    """The API server holds the manifest to be wrong, which no other attempt would mend."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A Job as the API server shows it. failed: the reason and the words of its failure."""

    name: str
    complete: bool = False
    failed: tuple[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether it has ended, either way."""
        return self.complete or self.failed is not None


class JobApi:
    """Jobs of one namespace. Every call raises `ClusterUnavailable` where there is no answer.

    Args:
        namespace: where the Jobs are.
        timeout_s: of one request.
        kubeconfig: how to reach the API server; from within the cluster, as the pod's service account, when None.
    """

    def __init__(self, namespace: str, timeout_s: float, kubeconfig: Path | None = None) -> None:
        from kubernetes import client

        self._client = client
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._kubeconfig = kubeconfig
        self._opened: Any = None

    async def create(self, manifest: dict[str, Any]) -> bool:
        """Create the Job; False where there is one of its name. Raises `JobInvalid`."""

        try:
            body = self._client.V1Job.from_dict(manifest)
        except ValueError as error:
            raise JobInvalid(f"the official client refuses the Job: {error}") from None

        def create(batch: Any) -> bool:
            try:
                batch.create_namespaced_job(
                    self._namespace, body, field_validation="Strict", _request_timeout=self._timeout_s
                )
            except self._client.ApiException as error:
                if error.status == CONFLICT:
                    return False
                if error.status in INVALID:
                    raise JobInvalid(f"Kubernetes refuses the Job {body.metadata.name}: {_words(error)}") from None
                raise
            return True

        return await self._call(create)

    async def get(self, name: str) -> JobState | None:
        """The Job, or None where there is none of that name."""

        def get(batch: Any) -> JobState | None:
            try:
                return _state(batch.read_namespaced_job(name, self._namespace, _request_timeout=self._timeout_s))
            except self._client.ApiException as error:
                if error.status == GONE:
                    return None
                raise

        return await self._call(get)

    async def list(self, selector: str) -> list[JobState]:
        """The Jobs with these labels."""

        def list_(batch: Any) -> list[JobState]:
            found = batch.list_namespaced_job(
                self._namespace, label_selector=selector, _request_timeout=self._timeout_s
            )
            return [_state(job) for job in found.items]

        return await self._call(list_)

    async def delete(self, name: str) -> None:
        """Ask a Job's pods to end, and delete it once they have; nothing happens where there is none."""

        def delete(batch: Any) -> None:
            try:
                batch.delete_namespaced_job(
                    name, self._namespace, propagation_policy="Foreground", _request_timeout=self._timeout_s
                )
            except self._client.ApiException as error:
                if error.status != GONE:
                    raise

        await self._call(delete)

    async def _call(self, work: Callable[[Any], _T]) -> _T:
        return await asyncio.to_thread(self._told_apart, work)

    def _told_apart(self, work: Callable[[Any], _T]) -> _T:
        from urllib3.exceptions import HTTPError

        try:
            return work(self._batch())
        except self._client.ApiException as error:
            raise ClusterUnavailable(f"the Kubernetes API answered {error.status}: {_words(error)}") from None
        except (HTTPError, OSError) as error:
            raise ClusterUnavailable(f"the Kubernetes API does not answer: {type(error).__name__}: {error}") from None
        except ValueError as error:
            # What came back is no Job: a proxy's page, or half an answer.
            raise ClusterUnavailable(f"the Kubernetes API's answer is not understood: {str(error)[:500]}") from None

    def _batch(self) -> Any:
        """The client, made at the first call: the cluster's files may not be there before."""
        if self._opened is None:
            from kubernetes import config

            made = self._client.Configuration()
            # Whoever calls asks again, and must hear soon that nobody answers.
            made.retries = False
            try:
                if self._kubeconfig is None:
                    config.load_incluster_config(client_configuration=made)
                else:
                    config.load_kube_config(str(self._kubeconfig), client_configuration=made)
            except config.ConfigException as error:
                raise ClusterUnavailable(
                    f"no way to the Kubernetes API: {error}: in a pod mount the service account's token, elsewhere set "
                    "kubernetes.kubeconfig"
                ) from None
            self._opened = self._client.BatchV1Api(self._client.ApiClient(made))
        return self._opened


def _state(job: Any) -> JobState:
    conditions = {c.type: c for c in (job.status.conditions or ()) if c.status == "True"} if job.status else {}
    failed = conditions.get("Failed")
    return JobState(
        name=job.metadata.name,
        complete="Complete" in conditions,
        failed=None if failed is None else (failed.reason or "Failed", failed.message or ""),
    )


def _words(error: Any) -> str:
    return f"{error.reason}: {str(error.body or '')[:500]}"
