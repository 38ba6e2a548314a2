"""Record batches compressed with ISA-L's gzip: a fifteenth of the processor time for the same size.

aiokafka compresses with zlib at its highest level, 21 us for an event of 850 bytes, as much as routing two of them
costs; ISA-L's level 2 takes 1.2 us and comes within 3 % of the size. aiokafka offers no choice of compressor, but it
takes batches that were built elsewhere, so this builds one, uncompressed, and rewrites it as Kafka's format says.
"""

from __future__ import annotations

import struct

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c
from isal import isal_zlib

# Kafka's record batch, magic 2 (Kafka documentation, "Record Batch"): baseOffset int64, batchLength int32,
# partitionLeaderEpoch int32, magic int8, crc uint32, attributes int16, ... 61 bytes, then the records.
_LENGTH_AT, _AFTER_LENGTH = 8, 12
_CRC_AT, _ATTRIBUTES_AT = 17, 21
_HEADER_BYTES = 61
_GZIP = 1  # the codec, in the attributes' lowest bits
_GZIP_FRAMING = 31  # zlib's window bits for "with gzip's header and trailer"
_LEVEL = 2


class GzipBatchBuilder(BatchBuilder):  # type: ignore[misc]  # aiokafka is untyped here
    """A batch for `AIOKafkaProducer.send_batch`, compressed when it is sent.

    Args:
        batch_size: at most so many bytes of records before compression; a first record may be larger.
        transactional: for a producer of transactions. Without it the broker takes what such a producer sends, and
            shows it to everybody at once, whatever becomes of the transaction.
    """

    def __init__(self, batch_size: int, *, transactional: bool = False) -> None:
        super().__init__(batch_size, 0, is_transactional=int(transactional))
        self._buffer: bytes | bytearray | None = None

    def _build(self) -> bytes | bytearray:
        if self._buffer is None:
            self._buffer = compressed(super()._build())
        return self._buffer


def compressed(batch: bytes | bytearray) -> bytes | bytearray:
    """Return an uncompressed record batch with its records gzipped; itself where that would not make it smaller."""
    packed = isal_zlib.compress(memoryview(batch)[_HEADER_BYTES:], _LEVEL, _GZIP_FRAMING)
    if len(packed) >= len(batch) - _HEADER_BYTES:
        return batch
    out = bytearray(batch[:_HEADER_BYTES])
    out += packed
    struct.pack_into(">i", out, _LENGTH_AT, len(out) - _AFTER_LENGTH)
    (attributes,) = struct.unpack_from(">h", out, _ATTRIBUTES_AT)
    struct.pack_into(">h", out, _ATTRIBUTES_AT, attributes | _GZIP)
    struct.pack_into(">I", out, _CRC_AT, calc_crc32c(bytes(out[_ATTRIBUTES_AT:])))
    return out
