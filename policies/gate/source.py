"""The tested bundle of a folder that may change while the bundle is in force."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.gate.bundle import REGO_ROOT, PolicyBundle, read_files
from policies.gate.check import check_files
from policies.gate.errors import BundleError

logger = logging.getLogger(__name__)


class BundleSource:
    """Reads a folder of policies, and reads it again when its content changed.

    What was tested is what comes into force: the files are read once for both. A folder that is caught while it is
    written to is not taken until it holds still; still, put a new one in its place at once (rename it, or turn a
    symbolic link), for half of an old and half of a new bundle might pass. Threads may share a source.
    """

    def __init__(self, root: Path = REGO_ROOT, overrides: Mapping[str, Any] | None = None) -> None:
        """Load and test the bundle.

        Raises:
            BundleError: it does not load, fails its cases, or an override does not fit.
        """
        self._root = root
        self._overrides = dict(overrides or {})
        self._lock = threading.Lock()
        files = read_files(root)
        self._bundle = check_files(files, root, self._overrides)
        self._digest = _digest(files)
        self._refused: str | None = None
        self._error: BundleError | None = None

    @property
    def bundle(self) -> PolicyBundle:
        """The bundle in force."""
        return self._bundle

    @property
    def error(self) -> BundleError | None:
        """Why the folder as it is now is not in force; None where it is."""
        return self._error

    def refresh(self) -> PolicyBundle:
        """The bundle in force, after a look at the folder; the same object as long as its files are the same.

        A folder that does not load or fails its cases leaves the bundle as it is: see `error`. Takes a millisecond,
        and a second where the files changed.
        """
        with self._lock:
            try:
                files = read_files(self._root)
                digest = _digest(files)
            except BundleError as error:
                self._keep(error, str(error))
                return self._bundle
            if digest == self._digest:
                self._error = self._refused = None
            elif digest != self._refused:
                self._take(files, digest)
            return self._bundle

    def _take(self, files: Mapping[str, bytes], digest: str) -> None:
        try:
            if _digest(read_files(self._root)) != digest:
                logger.info("the policies in %s change while they are read; they are read again", self._root)
                return
            bundle = check_files(files, self._root, self._overrides)
        except BundleError as error:
            self._keep(error, digest)
            return
        self._bundle, self._digest = bundle, digest
        self._error = self._refused = None
        logger.info("policies in force: %s, data %s", bundle.bundle_revision[:12], bundle.data_revision[:12])

    def _keep(self, error: BundleError, refused: str) -> None:
        """Hold on to the bundle in force; what is refused again and again is logged once."""
        if refused != self._refused:
            logger.error("the policies in %s are not loaded, the former ones stay in force: %s", self._root, error)
        self._error, self._refused = error, refused


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
