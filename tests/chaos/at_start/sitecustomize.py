"""Python imports this at its start where this folder is on the path.

FLYWHEEL_TEST_MUTATION holds changes of modules, so that a worker runs with something taken out, as JSON: a list of
[module, text, other text].
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import select
import sys
import time
from collections.abc import Sequence
from types import CodeType, ModuleType

_CHANGES: list[tuple[str, str, str]] = json.loads(os.environ.get("FLYWHEEL_TEST_MUTATION", "[]"))


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with its changes, from its source."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        for module, before, after in _CHANGES:
            if module == fullname:
                if source.count(before) != 1:
                    sys.exit(f"{fullname} holds the text to change {source.count(before)} times: {before}")
                source = source.replace(before, after)
        code: CodeType = self.source_to_code(source.encode(), self.path)
        return code


class _Finder:
    """Finds the modules that have changes."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, _: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in {module for module, *_ in _CHANGES}:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        if found is None or found.origin is None:
            return None
        return importlib.util.spec_from_file_location(fullname, found.origin, loader=_Loader(fullname, found.origin))


if _CHANGES:
    sys.meta_path.insert(0, _Finder)
if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    # libfaketime takes the monotonic clock's absolute times, by which Python sleeps, for times of the clock it sets.
    time.sleep = lambda secs: select.select((), (), (), secs) and None
