"""What this machine can train with: GPUs it may see, memory it may use."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_GPU = re.compile(r"nvidia\d+")
_NOT_A_GPU = frozenset({"", "-1", "none", "void", "NoDevFiles"})
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GB = 1e9


def gpu_count(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> int:
    """How many NVIDIA GPUs have a device file here, and no more than CUDA_VISIBLE_DEVICES lists.

    Without torch, which only the training jobs load.
    """
    present = sum(1 for path in devices.iterdir() if _GPU.fullmatch(path.name)) if devices.is_dir() else 0
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return present
    visible = 0
    for name in listed.split(","):
        # CUDA stops reading at the first name that is no device.
        if name.strip() in _NOT_A_GPU:
            break
        visible += 1
    return min(present, visible)


def memory_gb(limit: Path = _CGROUP_LIMIT) -> float:
    """Memory in GB (10^9 bytes, whole ones): the machine's, or the container's where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = limit.read_text(encoding="ascii").strip()
    except OSError:
        text = "max"
    allowed = int(text) if text.isdigit() else whole
    return float(min(whole, allowed) // _GB)
