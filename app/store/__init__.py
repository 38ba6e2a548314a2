"""The SQL store: one `Database`, and a module of plain functions for each thing that is kept in it.

Every function takes an open `Connection`, so that a caller composes a change of state, its audit entry and the
record it sends in one transaction (`with database.write() as connection: ...`).
"""

from app.store.database import Database

__all__ = ["Database"]
