"""What the store's errors tell: where and what, never the text of an event."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from app.store import Database
from app.store.tables import pending_feedback


def test_an_error_of_the_database_quotes_no_event_text(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    row = {"feedback_id": "f", "corrected_response": "my diary", "signed": False, "created_at": "now"}
    with pytest.raises(sa.exc.IntegrityError) as refused, database.write() as connection:
        connection.execute(sa.insert(pending_feedback).values(target_event_id=None, verdict="correct", **row))
    database.close()
    assert "pending_feedback" in str(refused.value)
    # What PostgreSQL itself says after DETAIL is not ours to cut.
    assert "diary" not in str(refused.value).split("DETAIL")[0]
