"""Worker roles: each is its own Faust app and consumer group, and scales by itself."""

from __future__ import annotations

from enum import StrEnum

from app.settings import Settings


class Role(StrEnum):
    """What a worker does."""

    ROUTE = "route"
    CURATE = "curate"
    TRAIN = "train"
    MONITOR = "monitor"


def web_port(settings: Settings, role: Role) -> int:
    """The port of a role's web server."""
    return {
        Role.ROUTE: settings.web.route_port,
        Role.CURATE: settings.web.curate_port,
        Role.TRAIN: settings.web.train_port,
        Role.MONITOR: settings.web.monitor_port,
    }[role]
