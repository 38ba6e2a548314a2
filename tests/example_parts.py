"""Training examples as tests want them: one by number, with what the test cares about changed."""

from __future__ import annotations

from typing import Any

from models.event import Classification, Identity
from models.example import Example, Lineage


def example(number: int, **changes: Any) -> Example:
    """Example `number` of model `m`; its event is `e<number>`, and higher numbers are younger (up to 59)."""
    values: dict[str, Any] = {
        "example_id": f"{number:032x}",
        "identity": Identity(service="svc", id=f"e{number}", fingerprint="f"),
        "event_id": f"e{number}",
        "classification": Classification.CONSTITUTIONAL_VIOLATION,
        "lineage": Lineage(topic="t", partition=0, offset=number),
        "domain": "default",
        "model_id": "m",
        "subject_token": None,
        "workload_id": None,
        "violation_type": "harm",
        "compliance_score": 0.1,
        "prompt": f"prompt {number}",
        "response": f"response {number}",
        "created_at": f"2026-01-01T00:00:{number % 60:02d}.000000Z",
    }
    return Example(**(values | changes))
