"""Batches that are compressed here say, to aiokafka's own reader, what was put into them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from app.transport.batches import GzipBatchBuilder

HEADER_BYTES = 61
SIZE = 1024 * 1024
NONE, GZIP = 0, 1
Written = tuple[int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]
"""Timestamp in ms, key, value, headers."""

texts = st.one_of(
    st.binary(max_size=40), st.builds(lambda part, times: part * times, st.binary(max_size=9), st.just(99))
)
records = st.tuples(
    st.integers(0, 2**41),
    st.none() | texts,
    texts,
    st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=3).map(tuple),
)


def build(builder: Any, written: list[Written]) -> bytes:
    """The batch as it goes to the broker."""
    for timestamp, key, value, headers in written:
        assert builder.append(timestamp=timestamp, key=key, value=value, headers=list(headers)) is not None
    builder.close()
    return bytes(builder._build())


def read(batch: bytes) -> list[Written]:
    """What a consumer finds in it."""
    memory = MemoryRecords(batch)
    opened = memory.next_batch()
    assert opened.validate_crc()
    found = [(record.timestamp, record.key, record.value, tuple(record.headers)) for record in opened]
    assert not memory.has_next()
    return found


def codec(batch: bytes) -> int:
    """The compression that the batch's attributes announce."""
    return int(struct.unpack_from(">h", batch, 21)[0]) & 0x07


@settings(max_examples=150, deadline=None)
@given(st.lists(records, min_size=1, max_size=30))
def test_a_batch_holds_what_was_put_in(written: list[Written]) -> None:
    batch = build(GzipBatchBuilder(SIZE), written)
    assert read(batch) == written
    assert len(batch) <= len(build(BatchBuilder(SIZE, NONE), written)), "compression made it larger"
    assert len(batch) - 12 == struct.unpack_from(">i", batch, 8)[0], "the length it announces"


def test_text_is_compressed_as_gzip_defines_it() -> None:
    written: list[Written] = [(1_700_000_000_000 + n, b"key", b'{"event": "routine"}' * 20, ()) for n in range(50)]
    batch, plain = build(GzipBatchBuilder(SIZE), written), build(BatchBuilder(SIZE, NONE), written)
    assert codec(batch) == GZIP
    assert len(batch) < len(plain) / 10
    assert gzip.decompress(batch[HEADER_BYTES:]) == plain[HEADER_BYTES:]
    changed = {8, 9, 10, 11, 17, 18, 19, 20, 21, 22}  # length, CRC, attributes
    assert {at for at in range(HEADER_BYTES) if batch[at] != plain[at]} <= changed


@pytest.mark.parametrize(
    "value",
    [b"", b"x", bytes((n * 193 + n // 7 * 31) % 256 for n in range(120))],
    ids=["empty", "one byte", "noise"],
)
def test_what_would_not_get_smaller_stays_as_it_is(value: bytes) -> None:
    written: list[Written] = [(1_700_000_000_000, None, value, ())]
    batch = build(GzipBatchBuilder(SIZE), written)
    assert codec(batch) == NONE
    assert batch == build(BatchBuilder(SIZE, NONE), written)
    assert read(batch) == written


def test_a_record_without_key_or_value_stays_without() -> None:
    written: list[Written] = [(1, b"key", None, ()), (2, None, b"value" * 50, (("name", b""),))]
    assert read(build(GzipBatchBuilder(SIZE), written)) == written


@pytest.mark.parametrize("value", [b"long " * 500, b"x"], ids=["compressed", "as it is"])
def test_the_idempotent_producers_state_is_kept(value: bytes) -> None:
    builder = GzipBatchBuilder(SIZE)
    assert builder.append(timestamp=1, key=None, value=value, headers=[]) is not None
    builder._set_producer_state(4711, 3, 1234)
    memory = MemoryRecords(bytes(builder._build()))
    batch = memory.next_batch()
    assert batch.validate_crc()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (4711, 3, 1234)
    assert not batch.is_transactional
    assert not batch.is_control_batch


def test_a_batch_is_built_once() -> None:
    builder = GzipBatchBuilder(SIZE)
    builder.append(timestamp=1, key=None, value=b"long " * 500, headers=[])
    first = builder._build()
    assert builder._build() is first, "a retry sends the same bytes, under the same sequence"
    assert builder.size() == len(first)
    assert builder.record_count() == 1


def fill(builder: Any) -> int:
    count = 0
    while builder.append(timestamp=1, key=None, value=b"v" * 100, headers=[]) is not None:
        count += 1
    return count


@pytest.mark.parametrize("make", [GzipBatchBuilder, lambda size: BatchBuilder(size, NONE)], ids=["ours", "aiokafka's"])
def test_the_bound_is_on_what_is_put_in(make: Callable[[int], Any]) -> None:
    assert 80 <= fill(make(10_000)) < 100
    assert make(10).append(timestamp=1, key=None, value=b"v" * 100, headers=[]) is not None, "a first may be larger"


@pytest.mark.parametrize("value", [b"long " * 500, b"x"], ids=["compressed", "as it is"])
@pytest.mark.parametrize("transactional", [True, False])
def test_a_batch_of_a_transaction_says_so(value: bytes, transactional: bool) -> None:
    """Regression: without the flag the broker showed what a transaction held before, and though, it was aborted."""
    builder = GzipBatchBuilder(SIZE, transactional=transactional)
    assert builder.append(timestamp=1, key=None, value=value, headers=[]) is not None
    assert MemoryRecords(bytes(builder._build())).next_batch().is_transactional is transactional
