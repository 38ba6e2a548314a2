"""The Job of a cycle's training, as a manifest. Pure: from values to values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.training.cluster.config import ClusterConfig
from models.cycle import Cycle

APP = "constitutional-training"
"""Label `app` of Jobs and their pods; NetworkPolicies go by it."""
SECRETS_AT = "/run/secrets"
SECRET_KEYS = ("database_url", "digest_key")
"""All that a training job needs to know in secret."""
CYCLE_LABEL = "acgs-lite.io/cycle-id"
FENCE_LABEL = "acgs-lite.io/fence"
NODE_VARIABLE = "JOB_COMPLETION_INDEX"
"""Kubernetes sets it in each pod of an Indexed Job."""
MEETING_PORT = 29400
GRACE_S = 60
"""Between asking a pod to end and killing it: longer than its child is given."""
_USER = 1000


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt to train: a cycle under one fence of its domain's lease."""

    cycle: Cycle
    fence: int
    specification: Path
    """The file, on a shared volume, that the pods read."""
    timeout_s: float

    @property
    def name(self) -> str:
        """The Job's name: the same for whoever follows this attempt, another for the next one."""
        return job_name(self.cycle.cycle_id, self.fence)


def job_name(cycle_id: str, fence: int) -> str:
    """The name of a cycle's Job under a fence; with a pod's index behind it, still a DNS label."""
    return f"train-{_label(cycle_id.lower(), 40)}-{fence}"


def first_host(name: str, config: ClusterConfig) -> str:
    """The name by which a Job's pods find the first of them."""
    return f"{name}-0.{config.service}.{config.namespace}.svc"


def render(run: Run, config: ClusterConfig) -> dict[str, Any]:
    """The Job. One pod a machine; any that fails ends the Job, and the worker decides whether there is another."""
    labels = {
        "app": APP,
        "app.kubernetes.io/name": "acgs-lite",
        "app.kubernetes.io/component": "training-job",
        "app.kubernetes.io/managed-by": "constitutional-trainer",
        CYCLE_LABEL: _label(run.cycle.cycle_id),
        FENCE_LABEL: str(run.fence),
        "acgs-lite.io/owner": _label(run.cycle.requested_by),
    }
    annotations = {"acgs-lite.io/constitutional-compliance": "required"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": run.name,
            "namespace": config.namespace,
            "labels": {**config.labels, **labels},
            "annotations": annotations,
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": config.nodes,
            "parallelism": config.nodes,
            # Another attempt needs another fence, which the worker alone can take.
            "backoffLimit": 0,
            # Counts from the Job's creation. The job's own time is counted in the pod, from its start.
            "activeDeadlineSeconds": math.ceil(config.start_s + run.timeout_s) + GRACE_S,
            "ttlSecondsAfterFinished": config.keep_s,
            "template": {
                "metadata": {
                    "labels": {**config.labels, **labels, "acgs-lite.io/uses-postgres": "true"},
                    "annotations": annotations,
                },
                "spec": _pod(run, config),
            },
        },
    }


def _pod(run: Run, config: ClusterConfig) -> dict[str, Any]:
    claims = {path: f"volume-{number}" for number, path in enumerate(sorted(config.volumes))}
    secret = {
        "secretName": config.secret,
        "defaultMode": 0o440,
        "items": [{"key": key, "path": key} for key in SECRET_KEYS],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": config.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "subdomain": config.service,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(run, config, claims)],
        "volumes": [
            *({"name": name, "persistentVolumeClaim": {"claimName": config.volumes[p]}} for p, name in claims.items()),
            {"name": "secrets", "secret": secret},
            {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
            # Processes on one machine, and NCCL between them, pass tensors through it.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
    if config.priority_class is not None:
        pod["priorityClassName"] = config.priority_class
    if config.scheduler is not None:
        pod["schedulerName"] = config.scheduler
    if config.node_selector:
        pod["nodeSelector"] = config.node_selector
    if config.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _container(run: Run, config: ClusterConfig, claims: dict[str, str]) -> dict[str, Any]:
    # Requests are limits: such a pod is the last to be put out where a machine's memory runs short.
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpus:
        resources["nvidia.com/gpu"] = str(config.gpus)
    return {
        "name": "training",
        "image": config.image,
        "command": ["python", "-m", "agents.training.cluster.pod"],
        "args": [str(run.specification), SECRETS_AT],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            *({"name": name, "mountPath": path} for path, name in claims.items()),
            {"name": "secrets", "mountPath": SECRETS_AT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the container
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }


def _label(text: str, most: int = 63) -> str:
    """The text as a label's value may be."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:most].strip("-_.")
