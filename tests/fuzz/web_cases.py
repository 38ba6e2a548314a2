"""Requests to the workers' web: every route with what it takes, then changed; and who asks, by what credential."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus

from fuzz.frame import Case
from fuzz.values import Changer
from fuzz.wire import spoil

BACK = {"champion": "{version}", "comment": "why"}
FACTS = {
    "model": {"constitutional_hash": "cdd01ef066bc6cf2", "compliance_score": 0.97, "risk_level": "low"},
    "request": {"safety_validated": True},
    "content": {"violations": []},
    "user": {"id": "flywheel-operator", "groups": ["constitutional-ai-users"]},
    "resources": {"gpu_hours": 1.0, "requested_gpus": 1, "memory_gb": 1},
    "audit": {"enabled": True, "trail_enabled": True, "constitutional_hash": "cdd01ef066bc6cf2",
              "retention_period": 2555},
}  # fmt: skip
JSON_BODIES: dict[str, Any] = {
    "/api/v1/cycles/{cycle_id}/decision": {"approve": True, "comment": "looks right"},
    "/api/v1/cycles/{cycle_id}/cancel": {"comment": "why"},
    "/api/v1/feedback": [
        {"target_event_id": "{event}", "verdict": "approve", "reviewer_id": "bob"},
        {"target_event_id": "{event}", "verdict": "correct", "corrected_response": "I cannot.", "feedback_id": "f-1"},
    ],
    "/api/v1/dead-letters": {"verb": "dropped", "reason": "invalid_json", "places": ["0:1"], "comment": "why"},
    "/api/v1/models/{model_id:path}/rollback": BACK | {"without_verdict": True},
    "/api/v1/models/versions/{version_id}/promote": {"comment": "why", "again": True},
    "/api/v1/routing/settings/{name}": {"value": "0.7", "comment": "why"},
    "/api/v1/stop-switch": [{"halt": False, "comment": "why"}, {"halt": True, "comment": "why"}],
    "/api/v1/audit/verify": {},
    "/api/v1/decisions": {"action": "model_inference", "facts": FACTS},
    "/v1/logs": {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "x"}}]}]}]},
}  # fmt: skip
"""Where there are several, in a list, one of them is drawn."""
FORMS: dict[str, Any] = {
    "/sign-in": {"token": "{token}", "next": "/models"},
    "/sign-out": {},
    "/cycles/{cycle_id}/decide": {"word": "approve", "comment": "why"},
    "/cycles/{cycle_id}/cancel": {"comment": "why"},
    "/review": {"event_id": "{event}", "verdict": "correct", "corrected_response": "I cannot."},
    "/dead-letters": {"verb": "replayed", "place": "0:1", "comment": "why"},
    "/models/rollback": {"model_id": "{model}", **BACK, "without_verdict": "yes"},
    "/models/promote": {"version_id": "{version}", "comment": "why", "again": "yes"},
    "/routing/settings": {"name": "trigger.threshold", "value": "0.7", "comment": "why"},
    "/routing/stop-switch": [{"act": "resume", "comment": "why"}, {"act": "halt", "comment": "why"}],
    "/audit/verify": {},
}
QUERIES: dict[str, dict[str, str]] = {
    "/": {"span": "24h"},
    "/sign-in": {"next": "/models"},
    "/api/v1/overview": {"span": "3h"},
    "/api/v1/cycles": {"before": "2026-01-01T00:00:00Z", "open_only": "true", "limit": "5"},
    "/api/v1/review": {"limit": "5"},
    "/audit": {"event_type": "approval", "before": "7", "domain": "medical"},
    "/api/v1/audit/entries": {"model_id": "assistant", "limit": "5", "domain": "medical"},
}
IN_PATH = {
    "{cycle_id}": "{cycle}", "{model_id:path}": "{model}", "{version_id}": "{version}", "{name}": "trigger.threshold",
    "{partition}": "0", "{offset}": "1",
}  # fmt: skip
SLOW = frozenset(("/models/promote", "/api/v1/models/versions/{version_id}/promote"))
"""They open a gate of their own each time, which tests its policies: a second each."""

GOOD = ("operator", "operator", "reviewer", "viewer", "service", "medical")
BAD = ("nobody", "forged", "expired", "taken", "secret", "basic")
CALLERS = (*GOOD, *BAD)


@dataclass
class Names:
    """What stands for the things in the store that a request may be about; filled in when a case is run."""

    cycles: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def fill(self, text: str, tokens: Mapping[str, str]) -> str:
        """The text with `{cycle}` and the like put in; `{cycle:3}` is the fourth."""
        for name, known in (("cycle", self.cycles), ("model", self.models), ("version", self.versions),
                            ("event", self.events)):  # fmt: skip
            for number in range(8):
                text = text.replace(f"{{{name}:{number}}}", known[number % len(known)])
        return text.replace("{token}", tokens["operator"])


OF_STATE = {
    "POST /cycles/{cycle_id}/decide": 0, "POST /api/v1/cycles/{cycle_id}/decision": 4,
    "POST /cycles/{cycle_id}/cancel": 3, "POST /api/v1/cycles/{cycle_id}/cancel": 7,
    "POST /models/rollback": 1, "POST /api/v1/models/{model_id:path}/rollback": 5,
}  # fmt: skip
"""Which of the things in the store a valid request is about, where its state decides whether it is served."""


def valid_case(worker: str, method: str, path: str, caller: str) -> Case:
    """A request as a client of ours would make it."""
    route = f"{method} {path}"
    which = OF_STATE.get(route, 0)
    target = path
    for name, value in IN_PATH.items():
        target = target.replace(name, value)
    case: Case = {"worker": worker, "route": route, "method": method, "body": [], "headers": [], "caller": caller}
    case |= {"means": "bearer", "target": _numbered(target, which)}
    if method == "POST" and path in JSON_BODIES:
        body = JSON_BODIES[path]
        text = json.dumps(body[-1] if isinstance(body, list) else body)
        case |= {"headers": [["Content-Type", "application/json"]], "body": [[_numbered(text, which), 1]]}
    elif method == "POST":
        body = FORMS[path]
        fields = body[0] if isinstance(body, list) else body
        case |= {"form": {name: _numbered(value, which) for name, value in fields.items()}, "form_key": "own"}
    return case


def web_case(draw: random.Random, routes: list[tuple[str, str, str]]) -> Case:
    """A request to one of (worker, method, path), by somebody, in some form."""
    changer = Changer(draw)
    worker, method, path = draw.choice(routes)
    if path in SLOW and draw.random() < 0.7:
        worker, method, path = draw.choice(routes)
    which = draw.choice((1, 5)) if path.endswith("/rollback") else draw.randrange(8)  # those that serve
    case: Case = {"worker": worker, "route": f"{method} {path}", "method": method, "body": [], "headers": []}
    case["caller"] = draw.choice(GOOD * 4 + BAD)
    case["means"] = draw.choice(("bearer", "bearer", "bearer", "session"))
    case["target"] = _target(draw, changer, path, which)
    if draw.random() < 0.3:
        case["headers"].append(["Accept", "text/html"])
    if method == "POST" and path in FORMS and not (path in JSON_BODIES and draw.random() < 0.5):
        fields = {name: _numbered(value, which) for name, value in _one_of(draw, FORMS[path]).items()}
        for _ in range(draw.choice((0, 0, 1, 2))):
            fields[draw.choice((*fields, "by", changer.key()))] = changer.word()
        case["form"] = fields
        case["form_key"] = draw.choice(("own",) * 9 + ("none", "forged", "others"))
        case["origin"] = draw.choice((None,) * 8 + ("http://127.0.0.1", "http://evil.example", "null"))
    elif method == "POST" and path in JSON_BODIES:
        tree = json.loads(_numbered(json.dumps(_one_of(draw, JSON_BODIES[path])), which))
        tree = changer.change(tree, draw.choice((0, 0, 0, 1, 1, 2, 5)))
        case["means"] = draw.choice(("bearer",) * 9 + ("session",))  # a session alone changes nothing here
        case["headers"].append(["Content-Type", "application/json"])
        case["body"] = [[changer.text_of(tree), 1]]
        if draw.random() < 0.03:
            case["body"] = changer.bomb()
    if draw.random() < 0.08:
        case["cookies"] = {draw.choice(("flywheel_said", "flywheel_visit", "flywheel_session", "x")): _cookie(changer)}
    spoil(draw, case)
    return case


def _one_of(draw: random.Random, body: Any) -> Any:
    return draw.choice(body) if isinstance(body, list) else body


def _target(draw: random.Random, changer: Changer, path: str, which: int) -> str:
    made = path
    for name, value in IN_PATH.items():
        if name in made:
            odd = draw.random() < 0.25
            put = quote(changer.word()[:300].encode("utf-8", "surrogatepass"), safe="") if odd else value
            made = made.replace(name, put)
    pairs = []
    for name, value in QUERIES.get(path, {}).items():
        if draw.random() < 0.5:
            text = changer.word()[:400] if draw.random() < 0.6 else value
            pairs.append(f"{name}={quote_plus(text.encode('utf-8', 'surrogatepass'))}")
    return _numbered(made + ("?" + "&".join(pairs) if pairs else ""), which)


def _numbered(text: str, which: int) -> str:
    for name in ("cycle", "model", "version", "event"):
        text = text.replace(f"{{{name}}}", f"{{{name}:{which}}}")
    return text


def _cookie(changer: Changer) -> str:
    text = "".join(letter for letter in changer.word()[:500] if letter.isprintable() and letter not in ";,\r\n")
    return text.encode("utf-8", "replace").decode("latin-1")
