"""The audit database's tables. The migrations build them; a test holds the two to agree."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("entry_id", String(256), nullable=False, unique=True),
    Column("event_type", String(256), nullable=False),
    Column("model_id", String(256)),
    Column("cycle_id", String(256)),
    Column("domain", String(256)),
    # Times are texts of fixed width in UTC: they sort alike in both databases, and their digests stay the same.
    Column("timestamp", String(32), nullable=False),
    Column("recorded_at", String(32), nullable=False),
    Column("violation_count", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("content_digest", String(64), nullable=False),
    Column("previous", String(64), nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Index("ix_audit_entries_event_type", "event_type", "seq"),
    Index("ix_audit_entries_model_id", "model_id", "seq"),
    Index("ix_audit_entries_cycle_id", "cycle_id", "seq"),
    Index("ix_audit_entries_domain", "domain", "seq"),
    Index("ix_audit_entries_timestamp", "timestamp"),
)
"""The log. `previous` is unique: the database itself refuses a fork of the chain."""

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
)
"""One row: the newest link. Writers lock it, so there is one chain however many write."""

HEAD_ID = 1

audit_prunings = Table(
    "audit_prunings",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("head", Text, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("entry_id", String(256), nullable=False),
    Column("pruned_at", String(32), nullable=False),
)
"""Append-only: up to which entry the log was pruned. The highest `seq` is the anchor, after which the chain begins.

`head` is the signed head of that entry, so that the anchor can be proven; `entry_id` is what the log says about it.
"""
