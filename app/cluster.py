"""From settings to where training Jobs run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from agents.training.cluster.api import JobApi
from agents.training.cluster.config import ClusterConfig
from agents.training.cluster.follow import ClusterJobs
from agents.training.config import CycleConfig
from app.settings import Settings, SettingsError
from app.store import Database


def cluster_jobs(settings: Settings, config: CycleConfig, database: Database) -> ClusterJobs | None:
    """What trains in a cluster, or None where a child of the worker trains. Raises `SettingsError`."""
    if settings.training.runner == "process":
        return None
    check_cluster(settings)
    kubernetes = settings.kubernetes
    api = JobApi(kubernetes.namespace, kubernetes.timeout_s, kubernetes.kubeconfig)
    # A pod's working folder need not be this worker's.
    student = config.student.model_copy(update={"model_cache": config.student.model_cache.absolute()})
    config = config.model_copy(update={"artifacts": config.artifacts.absolute(), "student": student})
    return ClusterJobs(cluster_config(settings), config, database, api)


def cluster_config(settings: Settings) -> ClusterConfig:
    """What a Job's manifest says besides the cycle's own."""
    return ClusterConfig(nodes=settings.training.nodes, **settings.kubernetes.model_dump())


def check_cluster(settings: Settings) -> None:
    """Raise `SettingsError` where Jobs are to train and would not find what the worker has."""
    if settings.training.runner == "process":
        return
    if find_spec("kubernetes") is None:
        raise SettingsError(
            "training.runner=kubernetes needs the official client: pip install 'constitutional-flywheel[kubernetes]'"
        )
    if settings.database.url.startswith("sqlite"):
        raise SettingsError(
            "training.runner=kubernetes needs a database that pods reach: database.url is a file; give PostgreSQL's URL"
        )
    if settings.curation.digest_key is None:
        raise SettingsError(
            "training.runner=kubernetes needs curation.digest_key from the Secret: one drawn here is in no pod"
        )
    shared = {
        "training.artifacts": settings.training.artifacts,
        "training.model_cache": settings.training.model_cache,
        "constitution.path": settings.constitution.path,
    }
    for name, path in shared.items():
        if path is not None and not _is_shared(path, settings.kubernetes.volumes):
            raise SettingsError(
                f"{name}={path} lies on none of kubernetes.volumes ({', '.join(sorted(settings.kubernetes.volumes))}): "
                "a Job's pods would not see it"
            )


def _is_shared(path: Path, volumes: dict[str, str]) -> bool:
    return any(PurePosixPath(path.absolute()).is_relative_to(mount) for mount in volumes)
