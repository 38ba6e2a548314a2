"""Revisions of the audit database, oldest first."""
