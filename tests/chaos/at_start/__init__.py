"""What Python processes of a site import at their start: the module `sitecustomize` here."""

from __future__ import annotations

import os
from pathlib import Path

_PATH = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
AT_START = {"PYTHONPATH": os.pathsep.join(filter(None, _PATH))}
"""Environment of a process that imports it."""
