"""The audit engine: an append-only log in SQL whose entries are chained by SHA-256, behind HTTP (port 8003)."""
