"""Bounded decompression of message bodies whose producer announced it in a `content-encoding` header."""

from __future__ import annotations

import io
import zlib

import zstandard

from agents.routing.message import Reason, Unroutable

_GZIP_WINDOW_BITS = 31  # zlib's way to say "gzip framing only"


def decompress(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return `data` decompressed, at most `max_bytes` long.

    Args:
        data: the message body.
        encoding: a `content-encoding` value: gzip, x-gzip, zstd, identity or empty.
        max_bytes: bound on the result; never more than one byte beyond it is produced.

    Raises:
        Unroutable: the encoding is unknown, the data is corrupt, or the result would exceed the bound.
    """
    name = encoding.strip().lower()
    if name in ("", "identity", "none"):
        return data
    if name in ("gzip", "x-gzip"):
        result = _gunzip(data, max_bytes)
    elif name == "zstd":
        result = _unzstd(data, max_bytes)
    else:
        raise Unroutable(Reason.UNSUPPORTED_ENCODING, f"content-encoding {name[:32]!r}; send gzip, zstd or none")
    if len(result) > max_bytes:
        raise Unroutable(Reason.DECOMPRESSED_TOO_LARGE, f"more than {max_bytes} bytes once decompressed")
    return result


def _gunzip(data: bytes, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    room = max_bytes + 1
    rest = data
    while rest and room > 0:  # a gzip stream may hold several members
        member = zlib.decompressobj(_GZIP_WINDOW_BITS)
        try:
            part = member.decompress(rest, room)
        except zlib.error as error:
            raise Unroutable(Reason.CORRUPT_COMPRESSION, f"gzip: {error}") from error
        parts.append(part)
        room -= len(part)
        if not member.eof and room > 0:
            raise Unroutable(Reason.CORRUPT_COMPRESSION, "gzip: the stream ends early")
        rest = member.unused_data
    return b"".join(parts)


def _unzstd(data: bytes, max_bytes: int) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
    parts: list[bytes] = []
    room = max_bytes + 1
    try:
        while room > 0:
            part = reader.read(room)
            if not part:
                break
            parts.append(part)
            room -= len(part)
    except zstandard.ZstdError as error:
        raise Unroutable(Reason.CORRUPT_COMPRESSION, f"zstd: {error}") from error
    return b"".join(parts)
