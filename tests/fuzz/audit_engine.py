"""The audit engine's API: entries and searches over HTTP to the real service, over SQLite."""

from __future__ import annotations

import json
import logging
import random
import sqlite3
from collections import Counter
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlsplit

from loopback import serving

from fuzz.frame import Case, Target, check
from fuzz.values import MARK, Changer, bytes_of
from fuzz.wire import Answer, exchange, json_request, plain, request, spoil
from models.audit import AuditReceipt, StoredEntry
from policies.audit.config import AuditConfig, SealConfig
from policies.audit.redact import TEXT_KEYS
from policies.audit.service import create_audit_app

TOKEN, READ_TOKEN = "planted-token-of-writers", "planted-token-of-readers"
DIGEST_KEY, SIGNING_KEY = "planted-digest-key-of-the-audit", bytes(range(32))
REFUSALS = frozenset((400, 401, 404, 405, 409, 413, 422))
LOG = "/api/v1/log"
READS = ("/api/v1/entries", "/api/v1/violations/recent", "/api/v1/optimizations/recent", "/api/v1/verify",
         "/health/live", "/health/ready", "/metrics", "/openapi.json")  # fmt: skip
PARAMETERS = ("after", "before", "limit", "newest", "since", "until", "event_type", "model_id", "cycle_id", "domain")
KEPT = ("event_type", "constitutional_hash", "compliance_score", "model_id", "cycle_id", "domain")


def seeds() -> list[dict[str, Any]]:
    """Valid entries."""
    common = {"constitutional_hash": "cdd01ef066bc6cf2", "timestamp": "2026-03-02T09:16:00Z"}
    return [
        common | {"event_type": "constitutional_validation", "compliance_score": 0.4, "model_id": "assistant",
                  "violations": ["privacy", {"type": "harm.violence", "severity": "high"}],
                  "context": {"prompt": MARK, "iteration": 2, "nested": {"response": MARK, "n": [1, 2.5, None]}}},
        common | {"event_type": "optimization_cycle", "trigger_type": "drift", "model_type": "lora", "success": True,
                  "cycle_id": "c-1", "domain": "medical"},
        common | {"event_type": "approval", "context": {"reviewer": "bob"}, "timestamp": 1772442960.5},
    ]  # fmt: skip


class AuditEngineTarget(Target):
    """What is refused is not in the log; what is taken is there, its text digested; the chain verifies throughout."""

    name = "audit-engine"
    short_cases = 3000
    secrets = (TOKEN, READ_TOKEN, DIGEST_KEY, SIGNING_KEY.hex())

    def start(self) -> None:
        """Serve the engine over a new log."""
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self.database = self.folder / "audit.db"
        config = AuditConfig(
            f"sqlite:///{self.database}", DIGEST_KEY.encode(), token=TOKEN, read_token=READ_TOKEN,
            seal=SealConfig(SIGNING_KEY, self.folder / "heads.jsonl", interval_s=5.0), max_body_bytes=100_000,
        )  # fmt: skip
        url = self.stack.enter_context(serving(create_audit_app(config)))
        self.port = int(urlsplit(url).port or 0)
        self.connection = self.stack.enter_context(closing(sqlite3.connect(self.database, isolation_level=None)))

    def case(self, draw: random.Random) -> Case:
        """An entry or a search, changed in its tree, its text and its HTTP."""
        changer = Changer(draw)
        if draw.random() < 0.7:
            tree: Any = draw.choice(seeds())
            if draw.random() < 0.5:
                tree["entry_id"] = f"e-{draw.randrange(40)}"  # ids that collide
            tree = changer.change(tree, draw.choice((0, 1, 1, 2, 3, 6)))
            case = json_request("POST", LOG, TOKEN, changer.text_of(tree))
            if draw.random() < 0.03:
                case["body"] = changer.bomb()
        else:
            path = draw.choice(READS[:1] * 6 + READS)
            case = json_request("GET", path + self._query(draw, changer), draw.choice((READ_TOKEN, READ_TOKEN, TOKEN)))
        if draw.random() < 0.05:
            case["headers"] = [pair for pair in case["headers"] if pair[0] != "Authorization"]
            case["stranger"] = True
        spoil(draw, case)
        return case

    def _query(self, draw: random.Random, changer: Changer) -> str:
        usual = {"after": "3", "before": "30", "limit": "5", "newest": "true", "since": "2026-01-01T00:00:00Z",
                 "until": "2027-01-01T00:00:00Z", "event_type": "approval", "model_id": "assistant"}  # fmt: skip
        pairs = []
        while draw.random() < 0.6:
            name = draw.choice(PARAMETERS)
            value = usual.get(name, "x") if draw.random() < 0.4 else changer.word()[:300]
            pairs.append(f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}")
        return "?" + "&".join(pairs) if pairs else ""

    def run(self, case: Case) -> str:
        """Send it."""
        before = self._entries()
        answer = exchange(self.port, case)
        written = self._entries() - before
        where = urlsplit(case["target"]).path if case["target"].startswith("/") else "odd"
        self.unsaid(answer.text, "the answer")
        if answer.status == 0:
            check(not plain(case), "a whole request got no answer")
            check(written == 0 or case.get("framing") is not None, "no answer, and an entry was written")
            return "connection closed"
        if answer.status == 200:
            if case["method"] == "POST" and where == LOG:
                check(not case.get("stranger"), "written without a token")
                self._written(case, answer, written)
            else:
                check(written == 0, "a reading request wrote")
        else:
            check(answer.status in REFUSALS, f"{case['method']} {where}: status {answer.status}: {answer.text[:300]}")
            check(written == 0, f"refused with {answer.status}, and {written} entries were written")
            self._refusal(case, answer)
        return f"{where if where in (LOG, *READS) else 'elsewhere'} {answer.status}"

    def _refusal(self, case: Case, answer: Answer) -> None:
        # A conflict names the id that is taken, which a writer can have made from anything.
        told = answer.text.replace(f"audit entry {MARK!r} is in the log", "") if answer.status == 409 else answer.text
        check(MARK not in told, "a refusal repeats the text that was sent")
        if case["method"] == "HEAD" or answer.body.startswith(b"Invalid HTTP request"):
            return
        detail = json.loads(answer.body)["detail"]
        check(isinstance(detail, str) and len(detail) > 8, f"a refusal says too little: {detail!r}")
        check(len(detail) < 5_000, f"a refusal says too much: {len(detail)} characters")

    def _written(self, case: Case, answer: Answer, written: int) -> None:
        receipt = AuditReceipt.model_validate_json(answer.body)
        if written == 0:
            return  # an entry that the log has already
        check(written == 1, f"{written} entries of one request")
        search = exchange(self.port, json_request("GET", "/api/v1/entries?newest=true&limit=1", READ_TOKEN))
        (found,) = [StoredEntry.model_validate(item) for item in json.loads(search.body)]
        check((found.id, found.digest) == (receipt.id, receipt.digest), "the receipt is not the entry's")
        sent = json.loads(bytes_of(case["body"]))
        for name in KEPT:
            check(_same(found.body.get(name), sent.get(name)), f"{name} was {sent.get(name)!r}, is {found.body!r}")
        check(not _texts_in(found.body), "event text is in the log")
        again = exchange(self.port, {**case, "headers": case["headers"]})
        if sent.get("entry_id") is not None:
            check(again.body == answer.body, "the same entry again has another receipt")

    def _entries(self) -> int:
        (count,) = self.connection.execute("SELECT seq FROM audit_head").fetchone()
        return int(count)

    def settle(self) -> None:
        """An entry is taken, and the whole chain is sound."""
        before = self._entries()
        body = json.dumps(seeds()[0])
        answer = exchange(self.port, json_request("POST", LOG, TOKEN, body))
        check(answer.status == 200 and self._entries() == before + 1, f"a valid entry is answered {answer.text[:200]}")
        report = json.loads(exchange(self.port, json_request("GET", "/api/v1/verify", READ_TOKEN)).body)
        check(report["ok"] is True and report["entries"] == before + 1, f"the chain: {report}")
        ready = exchange(self.port, request("GET", "/health/ready", []))
        check(ready.status == 200, f"no longer ready: {ready.text[:200]}")

    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """Each endpoint served, and each kind of refusal made."""
        wanted = {f"{path} 200" for path in (LOG, *READS)} | {f"{LOG} {status}" for status in (401, 409, 413, 422)}
        return (wanted | {"/api/v1/entries 422", "/api/v1/entries 401"}) - set(outcomes)


def _same(stored: Any, sent: Any) -> bool:
    return bool(stored == sent)


def _texts_in(body: dict[str, Any]) -> bool:
    """Whether a field that holds event text is there undigested, or a sentence stands for a violation's code."""
    waiting: list[Any] = [body]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            for key, item in part.items():
                names_text = key.lower().rpartition(".")[2] in TEXT_KEYS
                if names_text and item is not None and not _is_digest(item):
                    return True
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    codes = [code for one in body["violations"] for code in ([one] if isinstance(one, str) else one.values())]
    return MARK in codes


def _is_digest(item: Any) -> bool:
    return isinstance(item, dict) and set(item) == {"digest"} and str(item["digest"]).startswith("hmac-sha256:")
