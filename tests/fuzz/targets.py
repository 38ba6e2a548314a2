"""Every target by its name; a target's module is loaded when it is made."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fuzz_ingest
import fuzz_routing

from fuzz.frame import Target

_WHERE = {
    "policy-engine": ("policy_engine", "PolicyEngineTarget"),
    "audit-engine": ("audit_engine", "AuditEngineTarget"),
    "web": ("web", "WebTarget"),
    "settings": ("settings", "SettingsTarget"),
    "documents": ("documents", "DocumentsTarget"),
    "checkpoints": ("checkpoints", "CheckpointsTarget"),
    "cli": ("cli", "CliTarget"),
}
NAMES = tuple(_WHERE)

OWN_PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {"routing": fuzz_routing.main, "ingest": fuzz_ingest.main}
"""Fuzzers that came before the frame, and run without it: Kafka messages, and the OTLP endpoint."""


def make(name: str, folder: Path) -> Target:
    """A target that works in an empty folder; enter it to start it."""
    module, cls = _WHERE[name]
    made: Any = getattr(importlib.import_module(f"fuzz.{module}"), cls)
    target: Target = made(folder)
    return target
