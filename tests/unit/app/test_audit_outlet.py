"""What no audit entry can hold must not hold back everything that was to be told after it."""

from __future__ import annotations

from typing import Any

import pytest

from app.relay import Undeliverable
from app.wiring import AuditOutlet
from policies.clients.audit_client import AuditClient


@pytest.mark.parametrize("wrong", [{"model_id": "a\nsecret"}, {"compliance_score": "high"}, {"domain": "x" * 300}])
async def test_a_body_that_is_no_entry_is_undeliverable(wrong: dict[str, Any]) -> None:
    async with AuditClient("http://127.0.0.1:9") as client:
        with pytest.raises(Undeliverable) as raised:
            await AuditOutlet(client, "cdd01ef066bc6cf2").log_body({"event_type": "cycle_transition", **wrong})
    (name,) = wrong
    assert name in str(raised.value)
    assert "secret" not in str(raised.value), "the message is logged: it names the field, not the value"
