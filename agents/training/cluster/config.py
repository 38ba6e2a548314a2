"""Where training Jobs run, and with what. Plain values, as `agents.training.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class ClusterConfig(BaseModel):
    """What the manifest of a training Job says besides the cycle's own.

    secret: the Secret with the keys `database_url` and `digest_key`. volumes: the claim mounted at each path, where the
    worker and the pods see the same files. service: a headless Service over the Jobs' pods, by which machines find the
    first. start_s: how long a Job may wait for machines. keep_s: how long the cluster keeps one that has ended.
    """

    model_config = ConfigDict(frozen=True)

    namespace: str
    image: str
    secret: str
    volumes: dict[str, str]
    service_account: str
    service: str
    priority_class: str | None
    scheduler: str | None
    labels: dict[str, str]
    node_selector: dict[str, str]
    cpu: str
    memory: str
    gpus: int
    nodes: int
    start_s: float
    keep_s: int
    poll_s: float
    timeout_s: float
    kubeconfig: Path | None


def without_secrets(section: BaseModel) -> dict[str, Any]:
    """The section as JSON values, each field that its `repr` hides emptied."""
    plain: dict[str, Any] = {}
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            plain[name] = without_secrets(value)
        elif field.repr:
            plain[name] = dumped[name]
        else:
            plain[name] = None if value is None else ""
    return plain
