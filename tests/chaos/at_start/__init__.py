"""What Python processes of a site import at their start: the module `sitecustomize` here, which changes others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

Change = tuple[str, str, str]
"""Module, text, other text."""
_PATH = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
AT_START = {"PYTHONPATH": os.pathsep.join(filter(None, _PATH))}
"""Environment of a process that imports it."""


def changed(changes: Iterable[Change]) -> dict[str, str]:
    """Environment of a process that runs with these changes."""
    return {**AT_START, "FLYWHEEL_TEST_MUTATION": json.dumps(list(changes))}
