"""A small disk of a site's own, which a test may fill: a tmpfs, so it takes the right to mount."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "256m"
_PIECE = b"\0" * 65_536


class Disk:
    """A folder; `own` tells whether it is a disk by itself, which can be filled."""

    def __init__(self, folder: Path, *, own: bool) -> None:
        self.folder = folder
        self.own = own
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave not a byte."""
        assert self.own, "the folder shares a disk with all else"
        for size in (len(_PIECE), 1):
            try:
                with self._ballast.open("ab", buffering=0) as file:
                    while file.write(_PIECE[:size]):
                        pass
            except OSError:
                continue

    def clear(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A disk mounted at `folder`, else the plain folder. It ends with the block."""
    folder.mkdir(parents=True)
    mount, umount = shutil.which("mount"), shutil.which("umount")
    own = mount is not None and umount is not None and _run(mount, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder)
    try:
        yield Disk(folder, own=own)
    finally:
        if own:
            # Lazily: whoever still has a file open keeps it, and the folder is free.
            _run(str(umount), "-l", folder)


def _run(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
