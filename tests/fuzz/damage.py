"""Damage to the files of checkpoints and adapters, with their structure in mind."""

from __future__ import annotations

import json
import struct
from typing import Any


def changed_json(content: bytes, kind: str, more: list[Any]) -> bytes:
    """A JSON file with one place set or taken away, or something else in its place."""
    try:
        tree = json.loads(content)
        if kind == "whole":
            tree = more[0]
        else:
            *parents, leaf = more[0]
            part = tree
            for parent in parents:
                part = part[parent]
            if kind == "set":
                part[leaf] = more[1]
            else:
                del part[leaf]
        return json.dumps(tree).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return content  # an earlier change took the place away


def changed_tensors(content: bytes, kind: str, more: list[Any]) -> bytes:
    """A safetensors file with its header, or the numbers of one tensor, changed."""
    try:
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        names = [name for name in header if name != "__metadata__"]
        body = content[8 + size :]
        if kind == "length":
            return struct.pack("<Q", more[0]) + content[8:]
        name = names[more[0] % len(names)]
        if kind == "header":
            header[name][more[1]] = more[2]
        elif kind == "rename":
            header[more[1]] = header.pop(name)
        elif kind == "drop":
            del header[name]
        elif kind == "fill":
            start, end = (min(one, len(body)) for one in header[name]["data_offsets"])
            one = struct.pack("<f", float(more[1]))
            body = body[:start] + (one * ((end - start) // 4 + 1))[: end - start] + body[end:]
        written = json.dumps(header).encode()
        return struct.pack("<Q", len(written)) + written + body
    except (ValueError, LookupError, TypeError, struct.error, AttributeError, RecursionError):
        return content
